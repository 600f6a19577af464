from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from server import plots


@pytest.mark.parametrize(("count", "rows"), [(3, 3), (100, 100), (101, 51), (1000, 100)])
def test_of_a_large_fleet_as_many_devices_are_drawn_as_a_page_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, rows: int
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: drawn.append(figure))
    scores: dict[str, Any] = {f"device-{n:05d}": {"macro_f1": n / count} for n in range(count)}
    plots.plot_devices({"devices": scores}, {"core": {"devices": scores}}, tmp_path / "x.png")
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert len(names) == rows
    assert names == sorted(names)
    assert names[0] == "device-00000"
