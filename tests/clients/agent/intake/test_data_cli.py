from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.cli.root import run
from clients.agent.config import DeviceConfig, save_config
from fleet.adapt.base import Base
from tests.clients.agent.intake.recordings import write_csv
from tests.clients.agent.store.windows import opened


@pytest.fixture
def state(tmp_path: Path, tiny_base_file: Path) -> Path:
    folder = tmp_path / "state"
    (folder / "model").mkdir(parents=True)
    shutil.copy(tiny_base_file, folder / "model" / "base.safetensors")
    save_config(DeviceConfig(name="kitchen"), folder)
    return folder


@pytest.fixture
def walk(tmp_path: Path, tiny_base: Base) -> Path:
    times = 1000 + np.arange(640) / 50
    names = [name for name, _ in tiny_base.record.channels]
    values = np.random.default_rng(0).normal(size=(640, len(names)))
    return write_csv(tmp_path / "walk.csv", names, times, values)


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    assert run([*map(str, arguments), "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_recording_is_taken_in_labelled_and_forgotten(
    state: Path, walk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--person", "ada", "--state", state)
    report = answer(capsys, "ingest", walk, *place)["data"]["sources"][str(walk)]
    assert (report["samples"], report["new"]) == (640, 9)
    assert answer(capsys, "ingest", walk, *place)["data"]["sources"][str(walk)]["new"] == 0
    said = answer(capsys, "label", "walking", "--from", 1000, "--to", 1005, *place)["data"]
    assert (said["statements"], said["windows"]) == (1, 2)
    said = answer(capsys, "label", "sitting", "--window", 9, *place)["data"]
    assert {"split": "train", "label": "sitting", "windows": 1} in said["store"]
    said = answer(capsys, "label", "--clear", "--window", 9, *place)["data"]
    assert "sitting" not in str(said["store"])
    refused = answer(capsys, "forget", "ada", "--state", state, code=4)
    assert refused["error_code"] == "not-confirmed"
    done = answer(capsys, "forget", "ada", "--yes", "--state", state)["data"]
    assert done["deleted"]["windows"] == 9
    assert done["server_holds"] == []
    with opened(state) as store:
        assert store.windows.counts() == {}


def test_a_diary_counts_once_and_is_taken_whole_or_not(
    state: Path, walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--person", "ada", "--state", state)
    answer(capsys, "ingest", walk, *place, "--split", "held-out")
    diary = tmp_path / "diary.csv"
    diary.write_text("from,to,label\n1000,1005,walking\n1005,oops,sitting\n")
    refused = answer(capsys, "label", "--file", diary, *place, code=4)
    assert refused["error_code"] == "labels-unreadable"
    assert "line 3" in refused["message"]
    diary.write_text("from,to,label\n1000,1005,walking\n1005,1012,sitting\n")
    said = answer(capsys, "label", "--file", diary, *place)["data"]
    assert (said["statements"], said["windows"]) == (2, 6)
    assert {row["split"] for row in said["store"]} == {"held-out"}
    assert answer(capsys, "label", "--file", diary, *place)["data"]["windows"] == 0


def test_a_diary_with_a_word_that_the_base_does_not_know_is_refused_whole(
    state: Path, walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--person", "ada", "--state", state)
    answer(capsys, "ingest", walk, *place)
    diary = tmp_path / "diary.csv"
    diary.write_text("from,to,label\n1000,1005,walking\n1005,1012,juggling\n")
    refused = answer(capsys, "label", "--file", diary, *place, code=4)
    assert refused["error_code"] == "unknown-label"
    assert "walking" in refused["message"]
    with opened(state) as store:
        assert {label for _, label in store.windows.counts()} == {None}
    said = answer(capsys, "label", "--file", diary, "--new-class", *place)["data"]
    assert (said["statements"], said["windows"]) == (2, 6)


def test_samples_come_in_over_standard_input(
    state: Path, tiny_base: Base, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    names = [name for name, _ in tiny_base.record.channels]
    rows = [{"t": 20 * at, **dict.fromkeys(names, at)} for at in range(128)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    asked = ("ingest", "-", "--time", "t:ms", "--name", "waist", "--state", state)
    assert answer(capsys, *asked)["data"]["sources"]["waist"]["new"] == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ingest", "x.csv", "--time", "t:h"), "bad-time"),
        (("ingest", "x.csv", "--split", "half"), "bad-split"),
        (("ingest", "x.csv", "--as", "xml"), "bad-form"),
        (("ingest", "x.bin"), "form-unknown"),
        (("ingest", "x.csv"), "source-unreadable"),
        (("label", "walking"), "label-unclear"),
        (("label", "--window", "1"), "label-unclear"),
        (("label", "walking", "--window", "1"), "no-such-window"),
        (("label", "--file", "none.csv"), "labels-unreadable"),
        (("label", "WALKING", "--window", "1"), "unknown-label"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    state: Path, arguments: tuple[str, ...], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, *arguments, "--state", state, code=4)["error_code"] == code


def test_people_get_tables_and_examples(
    state: Path, walk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ingest", str(walk), "--person", "ada", "--state", str(state)]) == 0
    assert run(["label", "x", "--new-class", "--window", "1", "--state", str(state)]) == 0
    assert run(["forget", "ada", "--yes", "--state", str(state)]) == 0
    printed = capsys.readouterr().out
    assert "segments" in printed
    assert "1 window(s) labelled now" in printed
    assert "deleted: 1 labels, 9 windows" in printed
    for verb in ("ingest", "label", "forget"):
        assert run([verb, "--help"]) == 0
        assert f"fleet-device {verb}" in capsys.readouterr().out
