from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.adapt.base import Base
from fleet.errors import InputError, RoundError
from simulations.benchmarks import growth
from simulations.benchmarks.growth import Point, draw_growth
from simulations.cli.bench import app
from simulations.processes import Finished


def record(points: list[Point]) -> dict[str, Any]:
    rows = [vars(point) for point in points]
    return {"enrolled": rows, "cohorts": rows, "seconds_per_device": 0.1}


@pytest.mark.faults
def test_a_point_is_a_real_simulation_and_both_axes_share_it(tmp_path: Path) -> None:
    told: list[Point] = []
    found = growth.run([4], [2], tmp_path, windows=6, rounds=2, on_point=told.append)
    (point,) = told
    assert found["enrolled"] == found["cohorts"] == [vars(point)]
    assert (point.devices, point.cohort) == (4, 2)
    assert point.seconds > point.seconds_per_round > 0
    assert point.peak_bytes > 50e6
    assert found["seconds_per_device"] == point.seconds_per_round / 2


def test_a_command_that_fails_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Base
) -> None:
    monkeypatch.setattr(growth, "obtain_base", lambda *_: tiny_base)
    monkeypatch.setattr(growth, "execute", lambda *args, **options: Finished(1, 0.1))
    with pytest.raises(RoundError, match=r"4-devices-2-a-round: exit code 1; see .*\.txt"):
        growth.run([4], [2], tmp_path, windows=6, rounds=2, on_point=lambda point: None)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    points = [Point(100, 5, 3.0, 0.5, 10**8), Point(1000, 5, 3.0, 0.5, 10**8)]
    draw_growth(record(points), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words", [["--devices", "10,20", "--cohorts", "15"], ["--devices", "ten"], ["--cohorts", "0"]]
)
def test_sizes_that_do_not_fit_are_refused(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["growth", *words])
    assert isinstance(result.exception, InputError)
    assert result.exception.code == "growth-sizes"
