from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from simulations.continual.plot_style import LINES, line_of, rows_of, short
from simulations.continual.plots import plot_f1, plot_fleet, write_plots
from simulations.continual.strategies import STRATEGIES

PERFECT, WRONG = [[4, 0], [0, 4]], [[0, 4], [4, 0]]
CHANGES = [
    {"period": 1, "text": "remount:40", "devices": 2},
    {"period": 2, "text": "1 device leaves", "devices": 1},
]


def record(period: int, **changes: Any) -> dict[str, Any]:
    counts = {"device-00000": PERFECT, "device-00001": WRONG}
    return {"period": period, "counts": counts} | changes


def row(trained: int) -> dict[str, Any]:
    return {
        "f1": [0.5, None, 0.25],
        "class_f1": [[0.9, None], [0.5, 0.75]],
        "forgetting": {"a": 0.4, "b": None},
        "trained_parameters": trained,
    }


def records() -> list[dict[str, Any]]:
    first = record(0, tasks=[])
    second = record(1, counts={"device-00000": PERFECT}, alarms=["device-00000"])
    return [first, second, record(2, tasks=[])]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is asked of matplotlib."""
    seen: dict[str, list[Any]] = {
        "text": [],
        "imshow": [],
        "scatter": [],
        "axvline": [],
        "plot": [],
    }
    for name, calls in seen.items():
        real = getattr(Axes, name)

        def spy(self: Axes, *args: Any, _real: Any = real, _calls: Any = calls, **kw: Any) -> Any:
            _calls.append(args)
            return _real(self, *args, **kw)

        monkeypatch.setattr(Axes, name, spy)
    return seen


def test_a_run_has_its_pictures(tmp_path: Path) -> None:
    report = {
        "scenario": "turns",
        "data": "tiny",
        "labels": ["a", "b"],
        "changes": CHANGES,
        "strategies": {"frozen": row(0), "core": row(9), "core+replay": row(9)},
    }
    paths = write_plots(tmp_path, report, dict.fromkeys(report["strategies"], records()))
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "plots/f1.png",
        "plots/forgetting.png",
        "plots/fleet-core.png",
        "plots/fleet-core+replay.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_run_that_trains_nothing_has_pictures_too(tmp_path: Path) -> None:
    report = {
        "scenario": "turns",
        "data": "tiny",
        "labels": ["a", "b"],
        "changes": [],
        "strategies": {"frozen": row(0)},
    }
    assert len(write_plots(tmp_path, report, {"frozen": records()})) == 3


def test_changes_are_marked_with_their_texts(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    plot_f1({"core": [0.5, None, 0.25]}, CHANGES, "a title", tmp_path / "f1.png")
    assert [call[0] for call in drawn["axvline"]] == [0.5, 1.5], "between the periods"
    assert [call[2].strip() for call in drawn["text"]] == ["remount:40", "1 device leaves"]


def test_a_fleet_s_picture_has_a_cell_per_device_and_period(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    plot_fleet(records(), CHANGES, "a title", tmp_path / "fleet.png")
    f1 = drawn["imshow"][0][0]
    assert f1[0].tolist() == [1.0, 1.0, 1.0]
    assert f1[1, [0, 2]].tolist() == [0.0, 0.0]
    assert f1[1, 1] != f1[1, 1], "it was not there"
    (alarms,) = drawn["scatter"]
    assert [part.tolist() for part in alarms[:2]] == [[1], [0]]


def test_a_large_fleet_is_thinned_out(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    counts = {f"device-{number:05d}": PERFECT for number in range(450)}
    plot_fleet([{"period": 0, "counts": counts}], [], "a title", tmp_path / "fleet.png")
    assert drawn["imshow"][0][0].shape == (150, 1)
    assert drawn["scatter"] == []


def test_texts_of_near_changes_are_above_each_other() -> None:
    marks = rows_of(CHANGES, 12, 6.0)
    assert [(number, change["period"]) for number, change in marks] == [(1, 1), (0, 2)]
    far = [CHANGES[0], {"period": 9, "text": "x"}]
    assert [number for number, _ in rows_of(far, 12, 6.0)] == [0, 0]
    assert len(short("new: " + "SITTING, " * 9)) == 46


def test_strategies_have_lines_of_their_own() -> None:
    assert len({(str(c), str(d), w) for c, d, w in LINES.values()}) == len(LINES)
    assert line_of("something new")
    assert LINES.keys() <= STRATEGIES.keys()
