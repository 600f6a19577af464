from __future__ import annotations

import pytest
from rich.progress import Progress

from simulations.cli.display import Display, Speed


@pytest.mark.parametrize(("seconds", "shown"), [(0.5, "50/s"), (100.0, ""), (20.0, "1/s")])
def test_the_speed_is_steps_per_second_where_that_says_something(
    seconds: float, shown: str
) -> None:
    now = [0.0]
    bars = Progress(disable=True, get_time=lambda: now[0])
    task = bars.add_task("core", total=100)
    for _ in range(5):
        now[0] += seconds / 5
        bars.update(task, advance=5)
    assert Speed().render(bars.tasks[0]).plain == shown


def test_a_stage_without_a_step_has_no_speed() -> None:
    bars = Progress(disable=True)
    bars.add_task("core", total=100)
    assert Speed().render(bars.tasks[0]).plain == ""


def test_without_a_terminal_a_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.stage("core", 40)
        display.advance("round 1/2 · F1 0.500")
        display.say("core: done")
    assert capsys.readouterr().err.splitlines() == ["core: 40 steps", "core: done"]
