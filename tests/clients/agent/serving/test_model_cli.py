"""``fleet-device infer``, ``release`` and ``export``."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.cli.root import run
from clients.agent.serving.folder import CURRENT
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.serve import Serving
from clients.agent.store import SplitRule, WindowBatch, open_store
from fleet.federate.releases import Release
from tests.clients.agent.serving.factories import RATE_HZ, STRIDE, WINDOW, promoted, raw_windows

HEADER = "acc_x,acc_y,acc_z"


@pytest.fixture
def served(state: Path, releases: list[Release]) -> Path:
    promoted(state, releases[1])
    promoted(state, releases[2])
    return state


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def csv_of(window: np.ndarray[tuple[int, ...], np.dtype[np.float32]], more: int = 0) -> str:
    """A header, the rows of one window ``(channels, time)``, and ``more`` rows of zeros."""
    rows = [",".join(map(repr, row)) for row in window.T.tolist()] + ["0,0,0"] * more
    return "\n".join([HEADER, *rows]) + "\n"


def test_infer_answers_a_csv_window_by_window(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    window = raw_windows(1)[0]
    (tmp_path / "walk.csv").write_text(csv_of(window, more=STRIDE))
    assert run(["infer", str(tmp_path / "walk.csv"), "--state", str(served)]) == 0
    first, second = lines_of(capsys.readouterr().out)
    labels, probabilities = DeviceModel(served).predict(window[None])
    assert first == {
        "window": 0,
        "start_s": 0.0,
        "label": labels[0],
        "probability": round(float(probabilities.max()), 6),
        "release": 2,
    }
    assert (second["window"], second["start_s"]) == (1, STRIDE / RATE_HZ)


def test_infer_answers_standard_input_and_every_probability(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(csv_of(raw_windows(1)[0])))
    assert run(["infer", "-", "--state", str(served), "--probabilities"]) == 0
    (line,) = lines_of(capsys.readouterr().out)
    assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert line["probabilities"][line["label"]] == line["probability"]


def test_infer_follows_a_swap_in_the_middle_of_a_stream(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines() -> Any:
        yield from csv_of(raw_windows(1)[0]).splitlines()
        Serving(served).promote(Serving(served).held.kept(1))
        yield from ["0,0,0"] * STRIDE

    monkeypatch.setattr("sys.stdin", lines())
    assert run(["infer", "-", "--state", str(served)]) == 0
    assert [line["release"] for line in lines_of(capsys.readouterr().out)] == [2, 1]


def test_infer_answers_windows_of_a_file_for_people_too(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "w.npz", x=raw_windows(3))
    arguments = ["infer", str(tmp_path / "w.npz"), "--state", str(served), "--format", "table"]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith("release 2") for line in lines)


def test_infer_says_when_there_was_no_whole_window(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.csv").write_text(csv_of(raw_windows(1)[0][:, : WINDOW - 1]))
    assert run(["infer", str(tmp_path / "short.csv"), "--state", str(served)]) == 0
    said = capsys.readouterr()
    assert (said.out, "no whole window" in said.err) == ("", True)


def test_infer_says_when_it_is_not_the_current_release_that_answers(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (served / "model" / CURRENT).write_text("{}")
    np.savez(tmp_path / "w.npz", x=raw_windows(1))
    assert run(["infer", str(tmp_path / "w.npz"), "--state", str(served)]) == 0
    said = capsys.readouterr()
    assert lines_of(said.out)[0]["release"] == 1
    assert "not the current release answers" in said.err


@pytest.mark.parametrize("name", ["absent.csv", "absent.npz"])
def test_a_file_that_is_not_there_is_a_bad_argument(
    served: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["infer", str(tmp_path / name), "--state", str(served), "--format", "json"]
    assert run(arguments) == 4
    assert json.loads(capsys.readouterr().out)["error_code"].endswith("-unreadable")


def test_a_device_that_was_never_set_up_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["infer", "-", "--state", str(tmp_path), "--format", "json"]) == 1
    error = json.loads(capsys.readouterr().out)
    assert (error["error_code"], "init --base" in error["hint"]) == ("nothing-to-serve", True)


def test_release_list_marks_what_is_served(
    served: Path, releases: list[Release], capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Serving(served).take(releases[4])
    Serving(served).folder.release_file(damaged.name).write_bytes(b"half")
    assert run(["release", "list", "--state", str(served), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["served"]["number"] == 2
    rows = {row["number"]: row for row in data["releases"]}
    assert [(n, row["served"]) for n, row in sorted(rows.items())] == [
        (1, "last-good"),
        (2, "current"),
        (4, ""),
    ]
    assert rows[2]["published"] == releases[2].digest
    assert "no whole safetensors file" in rows[4]["problem"]
    assert run(["release", "list", "--state", str(served)]) == 0
    assert "last-good" in capsys.readouterr().out


def test_release_list_shows_the_base_where_that_is_served(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["release", "list", "--state", str(state), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["data"]["releases"]
    assert (row["number"], row["served"]) == (0, "current")


def test_release_use_goes_back_and_says_so(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["release", "use", "1", "--state", str(served)]) == 0
    assert "release 1 is served" in capsys.readouterr().out
    assert run(["release", "use", "1", "--state", str(served), "--format", "json"]) == 0
    outcome = json.loads(capsys.readouterr().out)["data"]
    assert (outcome["reason"], outcome["served"]["number"]) == ("already-served", 1)


def test_release_use_is_held_back_by_a_probe(
    served: Path, releases: list[Release], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x = DeviceModel(served), raw_windows(40)
    y = model.predict(x)[1].argmax(axis=1)
    np.savez(tmp_path / "probe.npz", x=x, y=y)
    arguments = ["release", "use", "0", "--state", str(served), "--format", "json"]
    assert run([*arguments, "--probe", str(tmp_path / "probe.npz"), "--margin", "0"]) == 1
    assert json.loads(capsys.readouterr().out)["error_code"] == "probe-fell"
    assert run([*arguments, "--probe", str(tmp_path / "probe.npz"), "--margin", "1"]) == 0


def test_release_use_asks_the_windows_that_the_store_holds_out_unless_told_not_to(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = raw_windows(40)
    labels, _ = DeviceModel(served).predict(x)
    start = np.arange(40, dtype=np.float64) * 10
    with open_store(served, clock=lambda: 0.0) as store:
        batch = WindowBatch(start_s=start, end_s=start + 1, signals=x)
        store.windows.add("ada", "s", batch, SplitRule(kind="held-out"))
        for number, label in enumerate(labels, start=1):
            store.labels.window(number, label, "ada")
    arguments = ["release", "use", "0", "--state", str(served), "--margin", "0"]
    assert run([*arguments, "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["error_code"] == "probe-fell"
    assert run([*arguments, "--no-probe", "--probe", "x.npz"]) == 4
    assert run([*arguments, "--no-probe"]) == 0


def test_release_use_of_one_that_is_not_kept_is_a_bad_argument(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["release", "use", "9", "--state", str(served), "--format", "json"]) == 4
    assert json.loads(capsys.readouterr().out)["error_code"] == "no-such-release"


def test_release_verify_reads_everything_back(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["release", "verify", "--state", str(served), "--format", "json"]) == 0
    checks = json.loads(capsys.readouterr().out)["data"]["checks"]
    names = Serving(served).folder.release_names()
    assert [check["what"] for check in checks] == ["base", "current", "last-good", *names]
    assert all(check["digest"] for check in checks)
    assert run(["release", "verify", "--state", str(served)]) == 0


def test_release_verify_names_every_file_that_is_not_whole(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Serving(served).folder
    names = folder.release_names()
    folder.release_file(names[0]).write_bytes(b"half")
    folder.served_file(names[1]).write_bytes(b"half")
    assert run(["release", "verify", "--state", str(served), "--format", "json"]) == 1
    error = json.loads(capsys.readouterr().out)
    assert error["error_code"] == "not-whole"
    assert all(f"{what}: " in error["message"] for what in ("current", names[0]))


def test_export_says_what_it_wrote_or_what_to_install(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("clients.agent.serving.export.find_spec", lambda name: None)
    arguments = ["export", "--out", str(tmp_path / "m.onnx"), "--state", str(served)]
    assert run([*arguments, "--format", "json"]) == 4
    assert json.loads(capsys.readouterr().out)["error_code"] == "onnx-missing"


@pytest.mark.parametrize("verb", [["infer"], ["release"], ["release", "use"], ["export"]])
def test_help_has_examples_that_name_the_command(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example" in out or verb == ["release"]
