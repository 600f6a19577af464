from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fleet.errors import InputError
from simulations.benchmarks import drift
from simulations.benchmarks.drift import contenders, draw_drift, run
from simulations.benchmarks.drift_streams import CHANGES, Seen, World, drawn
from simulations.cli.bench import app

BOUTS = np.array([[0, 40], [40, 45], [45, 100]])
LABELS = np.repeat([0.0, 1.0, 0.0], [40, 5, 55])


def test_a_stream_is_made_of_pieces_of_bouts_in_time_order() -> None:
    rows = drawn(BOUTS, LABELS, 2000, np.random.default_rng(0), 0)
    assert len(rows) == 2000
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    lengths = np.diff([0, *breaks, 2000])
    assert lengths[:-1].min() >= 5
    starts = rows[[0, *breaks]]
    for start, end in BOUTS:
        inside = (starts >= start) & (starts < end)
        assert inside.any()
        assert (starts[inside] + lengths[inside] <= end).all()


def test_habits_change_the_mix_and_a_steady_stream_keeps_it() -> None:
    shares = {}
    for habit in (0, 500):
        rows = drawn(BOUTS, LABELS, 10_000, np.random.default_rng(1), habit)
        shares[habit] = LABELS[rows].reshape(20, 500).mean(axis=1).std()
    assert shares[500] > 3 * shares[0]


def world(size: float) -> World:
    rng = np.random.default_rng(2)

    def seen(level: float) -> Seen:
        noise = rng.standard_normal((100, 2)) + level
        signals = np.column_stack([LABELS, noise])
        errors = rng.random(100) < (0.6 if level else 0.05)
        return Seen(signals, np.abs(noise), np.column_stack([LABELS, errors]))

    return World(
        "person-01", seen(0), {change: seen(size) for change in CHANGES}, BOUTS, BOUTS[::-1]
    )


@pytest.mark.parametrize(("size", "missed"), [(6.0, 0.0), (0.0, 1.0)])
def test_changes_are_counted_as_seen_or_missed(
    monkeypatch: pytest.MonkeyPatch, size: float, missed: float
) -> None:
    monkeypatch.setattr(drift, "worlds", lambda *arguments: iter([world(size)]))
    chosen = [c for c in contenders() if (c.name, c.parameter) == ("both by class, CUSUM", 12)]
    monkeypatch.setattr(drift, "contenders", lambda: iter(chosen))
    told: list[str] = []
    record = run(["x"], seeds=1, devices=1, windows=500, on_world=lambda *w: told.append(w[2]))
    assert told == ["person-01"]
    one, every = record["rows"]
    assert (one["data"], every["data"]) == ("x", "all")
    assert {**one, "data": ""} == {**every, "data": ""}
    if missed:
        assert one["missed"] > 0.5
    else:
        assert one["missed"] == 0
        assert one["delay"] <= 200
    assert one["false_alarms"] == 0


def test_the_picture_is_drawn_of_what_is_finite(tmp_path: Path) -> None:
    row = {"data": "all", "false_alarms": 0.5, "false_alarms_habits": 2.0, "parameter": 1}
    rows = [{**row, "detector": "a", "delay": 50.0}, {**row, "detector": "b", "delay": None}]
    draw_drift({"rows": rows}, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_every_contender_makes_a_detector_of_its_own() -> None:
    known = list(contenders())
    assert len({(each.name, each.parameter) for each in known}) == len(known)
    assert all(math.isfinite(each.parameter) for each in known)
    seen = world(0.0).stable
    for each in known:
        each.make().update(each.show(seen))


@pytest.mark.parametrize("data", [",", "hapt,all"])
def test_sets_that_are_none_are_refused(data: str) -> None:
    result = CliRunner().invoke(app, ["drift", "--data", data])
    assert isinstance(result.exception, InputError)
    assert result.exception.code == "drift-data"
