"""``fleet-device base list|add``, and the other commands of a device that has more than one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np

from clients.agent.cli.root import run
from clients.agent.doctor.model_trial import try_models
from clients.agent.serving.folder import ModelFolder
from fleet.adapt.base import Base, save_base
from fleet.errors import MismatchError
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned, fill, opened, release_message
from tests.clients.agent.answering.moving import (
    NEW,
    Move,
    files_of,
    growth_of,
    kernels_of,
    of_another_class,
    rebase_of,
)
from tests.clients.agent.cli.conftest import Json
from tests.clients.agent.serving.factories import LABELS, chain_of, make_base, raw_windows


@pytest.fixture(scope="module")
def first() -> Base:
    return make_base()


@pytest.fixture(scope="module")
def releases(first: Base) -> list[Release]:
    return chain_of(first, 2, step=0.02)


@pytest.fixture(scope="module")
def move(first: Base, releases: list[Release]) -> Move:
    return growth_of(first, releases[2])


@pytest.fixture
def device(ask: Json, state: Path, first: Base, releases: list[Release], tmp_path: Path) -> Path:
    """A device on release 2 of its first base, with windows and labels."""
    save_base(first, tmp_path / "first.safetensors")
    assert ask("init", "--name", "kitchen-1", "--base", tmp_path / "first.safetensors")[0] == 0
    fill(state, held_out=0)
    bring(state, releases[2])
    return state


@pytest.fixture
def file(move: Move, tmp_path: Path) -> Path:
    save_base(move.base, tmp_path / "grown.safetensors")
    return tmp_path / "grown.safetensors"


def bring(state: Path, release: Release, move: Move | None = None) -> int:
    """Have a release served; return how many windows the device could train on then."""
    message = release_message(release) if move is None else move.message(release)
    with opened(state, Turned().world()) as device:
        return int(device.ask("query.release", message).config["train_windows"])


def test_base_list_says_which_is_in_use(
    ask: Json,
    device: Path,
    first: Base,
    move: Move,
    releases: list[Release],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, envelope = ask("base", "list")
    [row] = envelope["data"]["bases"]
    assert code == 0
    assert row == {
        "digest": first.digest,
        "file": "base.safetensors",
        "model": "small-cnn",
        "classes": 4,
        "use": "in use",
        "problem": "",
    }
    bring(device, move.release, move)
    rows = ask("base", "list")[1]["data"]["bases"]
    assert [(row["digest"], row["classes"], row["use"]) for row in rows] == [
        (first.digest, 4, "first"),
        (move.base.digest, 5, "in use"),
    ]
    assert run(["base", "list"]) == 0
    table = capsys.readouterr().out
    for text in (first.digest[:16], move.base.digest[:16], "in use", "first", "small-cnn"):
        assert text in table
    bring(device, releases[1])
    assert [row["use"] for row in ask("base", "list")[1]["data"]["bases"]] == ["in use", ""]


def test_a_base_that_was_added_by_hand_is_needed_no_more_from_the_server(
    ask: Json, device: Path, move: Move, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(device, Turned().world()) as agent:  # it runs meanwhile
        with pytest.raises(MismatchError, match="holds no base"):
            agent.ask("query.release", release_message(move.release))
        code, envelope = ask("base", "add", file)
        assert (code, envelope["data"]) == (0, {"digest": move.base.digest, "added": True})
        status = agent.ask("query.release", release_message(move.release)).config
        assert status["serves"] == kernels_of(move.base, move.release)
    assert ask("base", "add", file)[1]["data"]["added"] is False
    assert run(["base", "add", str(file)]) == 0
    assert f"{move.base.digest} is held already" in capsys.readouterr().out


def test_adding_the_first_base_again_changes_nothing(
    ask: Json, device: Path, tmp_path: Path
) -> None:
    before = files_of(device)
    code, envelope = ask("base", "add", tmp_path / "first.safetensors")
    assert (code, envelope["data"]["added"]) == (0, False)
    assert files_of(device) == before


def test_what_cannot_be_added_is_refused_with_its_reason_and_nothing_is_kept(
    ask: Json, device: Path, first: Base, tmp_path: Path
) -> None:
    before = files_of(device)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    slow = replace(first, record=first.record.model_copy(update={"rate_hz": 25.0}))
    save_base(slow, tmp_path / "slow.safetensors")
    for name, wanted in (
        ("junk", "bundle-damaged"),
        ("none", "bundle-missing"),
        ("slow", "base-unlike"),
    ):
        code, envelope = ask("base", "add", tmp_path / f"{name}.safetensors")
        assert (code > 0, envelope["error_code"]) == (True, wanted)
    assert files_of(device) == before


def test_a_device_that_was_never_set_up_adds_no_base(ask: Json, file: Path, state: Path) -> None:
    code, envelope = ask("base", "add", file)
    assert (code > 0, envelope["error_code"]) == (True, "no-base")
    assert "init --base" in envelope["hint"]
    assert not state.exists()
    [row] = ask("base", "list")[1]["data"]["bases"]
    assert "there is no file" in row["problem"]


def test_release_list_use_and_verify_go_across_bases(
    ask: Json,
    device: Path,
    first: Base,
    move: Move,
    releases: list[Release],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bring(device, move.release, move)
    data = ask("release", "list")[1]["data"]
    assert data["served"]["base"] == move.base.digest
    assert [(row["number"], row["served"]) for row in data["releases"]] == [
        (2, "last-good"),
        (3, "current"),
    ]
    assert run(["release", "list"]) == 0
    assert "000003" in capsys.readouterr().out
    for wanted, base, release in (
        (2, first, releases[2]),
        (3, move.base, move.release),
        (0, first, releases[0]),
        (3, move.base, move.release),
    ):
        code, envelope = ask("release", "use", wanted)
        assert code == 0, envelope
        assert envelope["data"]["served"]["digest"] == kernels_of(base, release)
        assert ask("status")[1]["data"]["served"]["number"] == wanted
        assert ask("release", "verify")[0] == 0
    checks = ask("release", "verify")[1]["data"]["checks"]
    whats = [check["what"] for check in checks]
    assert whats[:4] == ["base", f"base {move.base.digest[:16]}", "current", "last-good"]
    assert checks[1]["digest"] == move.base.digest
    assert run(["release", "verify"]) == 0


def test_what_is_recognised_has_the_name_of_a_new_class(
    ask: Json, device: Path, move: Move, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(device, move.release, move)
    np.savez(tmp_path / "w.npz", x=raw_windows(2))
    assert run(["infer", str(tmp_path / "w.npz"), "--probabilities", "--format", "json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert f'"{NEW}":' in line


def test_a_class_of_the_grown_base_is_a_label_once_that_is_in_use(
    ask: Json, device: Path, move: Move, file: Path, releases: list[Release]
) -> None:
    label = ("label", NEW, "--window", 1)
    refused = ask(*label)
    assert (refused[0], refused[1]["error_code"]) == (4, "unknown-label")
    assert ask(*label, "--new-class")[0] == 0
    assert bring(device, releases[2]) == 23
    assert ask("base", "add", file)[0] == 0  # there, and not in use yet
    assert ask(*label)[1]["error_code"] == "unknown-label"
    assert bring(device, move.release) == 24
    assert ask(*label)[0] == 0
    refused = ask("label", "jumping", "--window", 1)
    assert refused[1]["error_code"] == "unknown-label"
    assert NEW in refused[1]["message"]
    bring(device, releases[1])
    assert ask(*label)[1]["error_code"] == "unknown-label"


def test_the_status_counts_windows_of_the_new_class(ask: Json, device: Path, move: Move) -> None:
    of_another_class(device, 3)
    bring(device, move.release, move)
    data = ask("status")[1]["data"]
    assert (data["served"]["number"], data["store"]["by_label"][NEW]) == (3, 3)
    assert data["served"]["base"] == move.base.digest


def test_a_later_base_that_is_damaged_is_a_problem_that_is_named(
    ask: Json,
    device: Path,
    first: Base,
    move: Move,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bring(device, move.release, move)
    path = ModelFolder(device).base_file(move.base.digest)
    path.write_bytes(path.read_bytes()[:-1])
    rows = ask("base", "list")[1]["data"]["bases"]
    assert [(row["digest"], row["use"], bool(row["problem"])) for row in rows] == [
        (first.digest, "first", False),
        ("", "in use", True),
    ]
    assert run(["base", "list"]) == 0
    assert "whole" in capsys.readouterr().out
    code, envelope = ask("release", "verify")
    assert (code, envelope["error_code"]) == (1, "not-whole")
    assert f"base {path.stem}" in envelope["message"]
    # What answers is whole all the same.
    assert ask("status")[1]["data"]["served"]["number"] == 3
    assert any(f"base {path.stem}" == row["what"] for row in try_models(device) if row["problem"])


def test_a_first_base_that_is_damaged_is_a_problem_too_and_the_later_one_works_on(
    ask: Json, device: Path, move: Move
) -> None:
    bring(device, move.release, move)
    ModelFolder(device).base.write_bytes(b"no base")
    rows = ask("base", "list")[1]["data"]["bases"]
    assert [(row["use"], bool(row["problem"])) for row in rows] == [
        ("first", True),
        ("in use", False),
    ]
    assert ask("release", "verify")[1]["error_code"] == "not-whole"
    assert ask("label", LABELS[0], "--window", 1)[0] == 0


def test_a_rebase_is_listed_like_a_growth(
    ask: Json, device: Path, first: Base, releases: list[Release]
) -> None:
    rebase = rebase_of(first, releases[2])
    bring(device, rebase.release, rebase)
    rows = ask("base", "list")[1]["data"]["bases"]
    assert [row["classes"] for row in rows] == [4, 4]
