from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fleet.continual.scenario import load_scenario, shipped
from fleet.continual.timeline import Timeline
from fleet.har import synthetic
from fleet.har.population import Population
from server.control.cli.root import run
from simulations import scenario_plot

MINE = """
name = "mine"
about = "A test."
periods = 6
devices = 4
label_fraction = 0.5
online = 0.5

[[events]]
kind = "shift"
at = 2
shift = "remount:35"
share = 0.5

[[events]]
kind = "leave"
at = 4
share = 0.25
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return str(path)


def data_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["scenario", *arguments, "--format", "json"]) == 0
    envelope: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert envelope["status"] == "ok"
    data: dict[str, Any] = envelope["data"]
    return data


def test_the_list_holds_every_shipped_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    listed = data_of(capsys, "list")["scenarios"]
    assert [one["name"] for one in listed] == list(shipped())
    assert listed[0]["periods"] == 12
    assert run(["scenario", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in shipped())


def test_a_scenario_is_shown_with_what_changes_when_and_for_whom(
    capsys: pytest.CaptureFixture[str], mine: str
) -> None:
    data = data_of(capsys, "show", mine, "--data", "synthetic")
    assert (data["name"], data["data"], len(data["labels"])) == ("mine", "synthetic", 7)
    assert data["classes"] == [7] * 6
    found = [(one["period"], one["text"], len(one["devices"])) for one in data["changes"]]
    assert found == [(2, "remount:35", 2), (4, "1 device leaves", 1)]
    assert run(["scenario", "show", "few-labels", "--data", "synthetic"]) == 0
    shown = capsys.readouterr().out
    assert "5% of the windows, 2 periods late" in shown
    assert "10 hours a day from 20:00" in shown


def test_the_seed_decides_who_is_touched(capsys: pytest.CaptureFixture[str], mine: str) -> None:
    shown = ("show", mine, "--data", "synthetic", "--seed")
    touched = {str(data_of(capsys, *shown, seed)["changes"][0]["devices"]) for seed in "01234"}
    assert len(touched) > 1


def test_a_broken_file_is_told_with_its_problems(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace("periods = 6", "periods = 0").replace("0.25", "2.5"))
    assert run(["scenario", "show", str(path), "--format", "json"]) == 4
    error = json.loads(capsys.readouterr().out)
    assert error["error_code"] == "bad-scenario"
    assert "periods" in error["message"]
    assert "share" in error["message"]


def test_a_plot_is_written_as_a_picture(
    capsys: pytest.CaptureFixture[str], mine: str, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "mine.png"
    written = data_of(capsys, "plot", mine, "--data", "synthetic", "--out", str(out))
    assert written == {"name": "mine", "data": "synthetic", "written": str(out)}
    assert out.read_bytes().startswith(b"\x89PNG")


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, name: str, **changes: Any) -> Figure:
    found: list[Figure] = []

    def keep(figure: Figure, file: Path, **_: object) -> None:
        found.append(figure)
        file.touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    dataset = synthetic.make(people=4, windows_per_activity=6)
    scenario = load_scenario(name).model_copy(update=changes)
    timeline = Timeline(scenario, Population(dataset, (1, 2), (3, 4), None), seed=0)
    scenario_plot.plot_scenario(timeline, path / "x.png")
    return found[0]


@pytest.mark.parametrize(
    ("name", "panels", "legend", "texts"),
    [
        ("sensor-moves", 2, "up to remount:60", ["remount:35", "remount:25"]),
        ("new-classes", 2, "stairs down", ["new: stairs_down"]),
        ("changing-habits", 2, "not there", ["3 devices join", "3 devices leave"]),
        ("few-labels", 3, "cannot take part", ["remount:35"]),
        ("slow-drift", 2, "up to remount:45\n+ gain:20\n+ rate:20", []),
    ],
)
def test_a_picture_names_what_happens(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    panels: int,
    legend: str,
    texts: list[str],
) -> None:
    figure = drawn(monkeypatch, tmp_path, name)
    assert len(figure.axes) == panels
    shown = figure.axes[0].get_legend()
    assert shown is not None
    assert legend in [text.get_text() for text in shown.get_texts()]
    assert set(texts) <= {text.get_text() for text in figure.axes[0].texts}
    assert len(figure.axes[0].get_yticklabels()) == 12


def test_a_large_fleet_fits_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, tmp_path, "sensor-moves", devices=201, periods=9)
    assert figure.get_figheight() < 8
    assert figure.axes[0].get_images()[0].get_array().shape[0] == 101
