from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fleet.errors import FleetError
from fleet.har import hapt, sources, synthetic
from fleet.har.canonical import read, write
from simulations.cli.data import app


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with the set ``mine``; real data beside the project is out of sight."""
    home = tmp_path / "data"
    write(synthetic.make(people=2, windows_per_activity=4), home / "mine.npz")
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    monkeypatch.setenv(sources.ENVIRONMENT, str(home))
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "x" / "fleet" / "har" / "sources.py"))
    return home


def run(*arguments: str) -> str:
    """Return standard output of a command; its error is raised."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout


def data_of(*arguments: str) -> dict[str, Any]:
    envelope = json.loads(run(*arguments, "--format", "json"))
    assert envelope["status"] == "ok"
    data: dict[str, Any] = envelope["data"]
    return data


def error_of(*arguments: str) -> FleetError:
    with pytest.raises(FleetError) as caught:
        run(*arguments)
    return caught.value


def download(folder: Path) -> Path:
    """An official HAPT archive in miniature."""
    path = folder / "hapt.zip"
    rows = "\n".join(f"{n / 1000} 0 1" for n in range(300))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("RawData/labels.txt", "1 1 5 1 300\n")
        archive.writestr("RawData/acc_exp01_user01.txt", rows)
        archive.writestr("RawData/gyro_exp01_user01.txt", rows)
    return path


def test_list_shows_the_names_their_sizes_and_the_default(folder: Path) -> None:
    data = data_of("list")
    assert [one["name"] for one in data["data_sets"]] == ["mine", "synthetic"]
    assert data["data_sets"][0]["windows"] == 56
    assert data["data_sets"][0]["path"] == str(folder / "mine.npz")
    assert data["data_sets"][1]["path"] is None
    assert data["default"] == "synthetic"
    assert data["folders"] == [str(folder)]
    text = run("list")
    assert "mine" in text
    assert "built in" in text
    assert "Default: synthetic" in text


def test_list_shows_what_is_wrong_with_a_data_set(folder: Path) -> None:
    (folder / "mine.json").unlink()
    assert "mine.json cannot be read" in data_of("list")["data_sets"][0]["problem"]
    assert "mine" in run("list")


def test_inspect_reports_counts_minutes_and_channels() -> None:
    data = data_of("inspect", "mine")
    assert data["windows"] == 56
    assert data["per_subject"] == {"1": [4] * 7, "2": [4] * 7}
    assert data["minutes"] == pytest.approx(56 * 64 / 50 / 60)
    assert [channel["unit"] for channel in data["channels"]] == ["m/s^2"] * 3 + ["rad/s"] * 3
    assert len(data["digest"]) == 64


def test_inspect_draws_classes_channels_and_people(folder: Path) -> None:
    text = run("inspect", str(folder / "mine.npz"))
    for part in ("56 windows", "50 Hz", "window 128", "stairs_up", "14.3%", "gyro_z", "rad/s"):
        assert part in text


def test_inspect_raises_what_is_wrong_with_the_file(folder: Path) -> None:
    assert error_of("inspect", "other").code == "data-unknown"
    (folder / "mine.npz").write_bytes(b"")
    assert error_of("inspect", "mine").code == "data-corrupt"


def test_convert_writes_a_data_set_that_inspect_reads(folder: Path) -> None:
    out = folder / "new" / "hapt.npz"
    data = data_of("convert", "hapt", str(download(folder)), "--out", str(out))
    assert data["written"] == [str(out), str(out.with_suffix(".json"))]
    assert data["windows"] == 3
    assert read(out).labels == hapt.LABELS
    assert data_of("inspect", str(out))["digest"] == data["digest"]
    np.testing.assert_allclose(read(out).physical()[0, 2], 9.80665, atol=0.003)


def test_convert_says_what_it_wrote_and_what_comes_next(folder: Path) -> None:
    text = run("convert", "hapt", str(download(folder)), "--out", str(folder / "h"))
    flat = text.replace("\n", "")
    assert "3 windows of 1 people" in flat.replace("  ", " ")
    assert "fleet data inspect" in flat


def test_convert_replaces_a_data_set_only_when_forced(folder: Path) -> None:
    arguments = ("convert", "hapt", str(download(folder)), "--out", str(folder / "mine"))
    assert error_of(*arguments).code == "already-there"
    assert read(folder / "mine").name == "synthetic"
    run(*arguments, "--force")
    assert read(folder / "mine").name == "hapt"


def test_convert_refuses_unknown_names_and_absent_downloads(folder: Path) -> None:
    unknown = error_of("convert", "pamap2", str(folder), "--out", "x.npz")
    assert unknown.code == "unknown-converter"
    assert "hapt, motionsense, usc_had" in unknown.hint
    assert error_of("convert", "hapt", str(folder), "--out", ".").code == "out-is-folder"
    assert error_of("convert", "hapt", "absent.zip", "--out", "x.npz").code == "data-missing"
    assert error_of("convert", "usc_had", str(folder), "--out", "x.npz").code == "layout-unknown"


@pytest.mark.parametrize("command", ["list", "inspect", "convert"])
def test_help_ends_with_examples_and_the_next_command(command: str) -> None:
    text = run(command, "--help")
    assert f"fleet data {command}" in text
    assert "Next: fleet" in text
