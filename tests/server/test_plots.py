from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from server import plots


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, count: int) -> Figure:
    found: list[Figure] = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: found.append(figure))
    scores: dict[str, Any] = {f"device-{n:05d}": {"macro_f1": n / count} for n in range(count)}
    plots.plot_devices({"devices": scores}, {"core": {"devices": scores}}, path)
    return found[0]


@pytest.mark.parametrize("count", [3, plots.LARGEST_NAMED])
def test_few_devices_have_a_row_and_a_name_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    figure = drawn(monkeypatch, tmp_path / "x.png", count)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"device-{n:05d}" for n in range(count)]


@pytest.mark.parametrize(("count", "points"), [(100, 100), (1000, 1000), (1001, 501)])
def test_of_a_large_fleet_as_many_devices_are_drawn_as_a_page_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, points: int
) -> None:
    figure = drawn(monkeypatch, tmp_path / "x.png", count)
    places = figure.axes[0].collections[0].get_offsets()
    assert len(places) == points
    assert figure.get_figheight() < 5
