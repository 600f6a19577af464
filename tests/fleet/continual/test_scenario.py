from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.continual.events import Classes, Join, Leave, Prior, ShiftEvent
from fleet.continual.scenario import Day, Scenario, load_scenario, parse_scenario, shipped
from fleet.errors import InputError

HEAD = 'name = "mine"\nabout = "A test."\nperiods = 10\ndevices = 8\n'
SHIPPED = {
    "changing-habits",
    "few-labels",
    "new-classes",
    "ninety-days",
    "sensor-moves",
    "slow-drift",
}


def event(kind: str, **fields: object) -> str:
    lines = (f"{key} = {value!r}" for key, value in {"kind": kind, **fields}.items())
    return "\n[[events]]\n" + "\n".join(lines)


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_scenario(text, "mine")
    assert caught.value.code == "bad-scenario"
    assert caught.value.hint
    return caught.value.message


def test_the_shipped_scenarios_are_these_and_carry_their_names() -> None:
    assert set(shipped()) == SHIPPED
    for name in shipped():
        assert load_scenario(name).name == name


def test_the_shipped_benchmarks_are_small_and_the_long_one_is_as_long_as_its_name() -> None:
    for name in SHIPPED - {"ninety-days"}:
        one = load_scenario(name)
        sizes = one.devices, one.periods, one.windows_per_period, one.test_windows_per_period
        assert sizes == (12, 12, 60, 30), name
    long = load_scenario("ninety-days")
    assert (long.devices, long.periods, long.period_hours) == (100, 90, 24)


def test_a_scenario_loads_without_torch() -> None:
    script = (
        "import sys; from fleet.continual.scenario import load_scenario;"
        "load_scenario('few-labels'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


def test_an_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(InputError, match="sensor-moves") as caught:
        load_scenario("sensor-move")
    assert caught.value.code == "no-such-scenario"


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + event("shift", at=2, shift="gain:10"))
    found = load_scenario(str(path))
    assert (found.name, found.periods, len(found.events)) == ("mine", 10, 1)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (256 * 1024 + 1), b"= 3"])
def test_a_file_that_is_no_scenario_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_scenario(str(path))
    assert caught.value.code == "bad-scenario"


def test_every_problem_of_a_file_is_told_at_once() -> None:
    told = refusal(
        'name = ""\nabout = "A test."\nperiods = 0\ndevices = 8\nonline = nan\ncolour = 3\n'
        + event("shift", at=2, shift="tilt:3")
        + event("shift", at=5, until=4, ends=3, shift="placement:20")
        + event("party", at=1)
    )
    for part in ("name", "periods", "online", "colour", "tilt:3", "until must come", "party"):
        assert part in told
    assert "ends must come after" in told
    assert "placement cannot grow" in told


@pytest.mark.parametrize(
    ("rest", "rule"),
    [
        (event("shift", at=10, shift="gain:10"), "at must lie before the end (10)"),
        (event("shift", at=0, shift="none"), "not 'none'"),
        (event("shift", at=0, shift="gain:10", share=0.0), "share"),
        ("start_classes = 1\n", "start_classes must be 0 or at least 2"),
        (event("classes", at=1, count=1), "none is left"),
        ('class_order = ["a", "b", "a"]\n', "names a class once"),
        (
            "start_classes = 2\n"
            + event("classes", at=1, count=0)
            + event("classes", at=2, count=1),
            "no classes are left",
        ),
        (event("join", at=1, share=0.6) + event("join", at=2, share=0.6), "10 devices would join"),
        (event("join", at=5, share=0.5) + event("leave", at=4, share=0.6), "only 4 have joined"),
        (event("leave", at=0, share=0.5), "events.0.leave.at"),
        ("[day]\nstarts_h = 1\nhours = 2\n", "less than 24 hours"),
        (
            event("shift", at=1, shift="gain:30") + event("shift", at=4, shift="gain:30"),
            "percent of gain must be 0 to 50, not 60",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(rest: str, rule: str) -> None:
    assert rule in refusal(HEAD + rest)


def test_sizes_of_one_kind_may_add_up_when_the_sum_is_in_range_or_they_never_meet() -> None:
    again = event("shift", at=4, shift="gain:30")
    parse_scenario(HEAD + event("shift", at=1, ends=4, shift="gain:30") + again, "mine")
    parse_scenario(HEAD + event("shift", at=1, shift="gain:20") + again, "mine")
    # Of a ramp that is cut off only what it reaches counts.
    ramp = event("shift", at=0, until=100, shift="gain:50")
    parse_scenario(HEAD + ramp + again, "mine")
    assert "gain" in refusal(HEAD + event("shift", at=0, until=8, shift="gain:50") + again)


def test_the_page_on_scenarios_has_every_key_and_an_example_that_loads() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "scenarios.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert parse_scenario(example, "the page's").name == "mine"
    for record in (Scenario, ShiftEvent, Classes, Prior, Join, Leave):
        for key in record.model_fields:
            assert f"`{key}`" in page or f"`[{key}]`" in page or f"`[[{key}]]`" in page, key
    for key in Day.model_fields:
        assert f"`{key}`" in page, key
    for name in shipped():
        assert f"### {name}\n" in page
        assert f"(images/scenario-{name}.png)" in page


@given(
    at=st.integers(0, 30),
    length=st.integers(1, 30),
    stays=st.none() | st.integers(1, 60),
    steep=st.booleans(),
)
def test_a_ramp_grows_linearly_from_nothing_to_the_whole_until_it_ends(
    at: int, length: int, stays: int | None, steep: bool
) -> None:
    ends = None if stays is None else at + stays
    until = None if steep else at + length
    one = ShiftEvent(kind="shift", shift="gain:20", at=at, until=until, ends=ends)
    grown = [one.grown(period) for period in range(100)]
    assert grown[:at] == [0.0] * at
    there = grown[at:ends]
    assert there == sorted(there)
    if until is None:
        assert set(there) == {1.0}
    else:
        steps = [min(step / length, 1.0) for step in range(len(there))]
        assert there == pytest.approx(steps)
    assert ends is None or set(grown[ends:]) <= {0.0}
