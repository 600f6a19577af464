"""Transcripts: a server backed up and put back, operators' certificates, a pin for a ward."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.supervise.record import RunLock
from server.control.cli.root import run
from server.control.service import Server
from server.registry import Registry
from server.service.folder import ServerFolder
from server.service.processes import PROGRAM
from tests.server.control.cli.conftest import Json
from tests.server.control.controlling import SIGNING

ACTOR = getpass.getuser()


def test_a_server_is_backed_up_and_put_back(
    ask: Json, kept: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, head = tmp_path / "monday.tar", kept.audit.head()
    code, told = ask("server", "backup", file)
    assert (code, told["seq"], told["hash"]) == (0, head.seq, head.hash)
    assert told["warning"] == ""
    assert told["bytes"] == file.stat().st_size
    assert ask("server", "backup", file)[1]["error_code"] == "backup-exists"
    kept.devices.revoke("bob", why="lost", actor="anna")
    kept.close()

    code, told = ask("server", "restore", file)
    assert (code, told["error_code"]) == (4, "not-confirmed")
    assert "\nlets in again: bob (key " in told["message"]
    lock = RunLock(ServerFolder(Path(os.environ["COREFLEET_SERVER"])).path, PROGRAM)
    assert ask("server", "restore", file, "--yes")[1]["error_code"] == "already-running"
    code, told = ask("server", "restore", file, "--dry-run")
    lock.close()
    assert (code, told["dry_run"], told["aside"]) == (0, True, None)
    assert told["before"]["seq"] == head.seq + 1
    assert ask("device", "show", "bob")[1]["device"]["state"] == "revoked"
    code, told = ask("server", "restore", file, "--yes")
    assert (code, told["forgets"]["revoked_devices"]) == (0, ["bob"])
    assert [each["device"] for each in told["lets_in_again"]] == ["bob"]
    assert (Path(told["aside"]) / "registry.sqlite").exists()
    assert ask("device", "show", "bob")[1]["device"]["state"] == "enrolled"

    monkeypatch.setenv("COREFLEET_SERVER", str(tmp_path / "new"))
    assert ask("server", "restore", file)[0] == 0
    for words in (("audit", "verify"), ("round", "replay", 1), ("round", "replay", 2)):
        assert ask(*words)[0] == 0, words
    assert ask("release", "verify")[1]["sound"] is True
    words = ("audit", "verify", "--seq", head.seq, "--hash", head.hash)
    assert ask(*words)[1]["sound"] is True


def test_keys_in_a_backup_are_told_loudly(
    folder: ServerFolder, ask: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.release_key.write_bytes(SIGNING)
    words = ["server", "backup", str(tmp_path / "keys.tar"), "--with-keys", "--with-authority-key"]
    assert run(words) == 0
    printed = capsys.readouterr()
    assert "WARNING" in printed.err
    assert "release-key, server.key, ca.key" in " ".join(printed.err.split()) or (
        "ca.key, release-key, server.key" in " ".join(printed.err.split())
    )
    assert "the audit ends with row" in printed.out
    assert "sign releases" in ask("server", "backup", "--with-keys")[1]["warning"]


def test_people_are_told_what_a_restore_lacks_and_what_is_next(
    ask: Json, read: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "one.tar"
    ask("server", "backup", file)
    monkeypatch.setenv("COREFLEET_SERVER", str(tmp_path / "new"))
    assert "would restore 3 devices, 2 rounds, 3 releases" in read(
        "server", "restore", file, "--dry-run"
    )
    assert not (tmp_path / "new").exists()
    text = read("server", "restore", file)
    assert "ca.key and release-key are neither in the backup nor here" in text
    assert "Next: fleet server init" in text
    assert "moved aside" in read("server", "restore", file, "--yes")
    ask("device", "revoke", "bob", "--yes")
    lines = read("server", "restore", file, "--dry-run").splitlines()
    assert any(line.startswith("lets in again: bob (key ") for line in lines)


def test_operators_are_issued_listed_and_revoked(
    ask: Json, read: Callable[..., str], kept: Registry, server: Server, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{server.port}"
    for name, role in (("anna", "admin"), ("bea", "viewer")):
        ask("operator", "issue", name, "--role", role, "--out", tmp_path / name)
    row = kept.audit.rows(newest=1)[0]
    assert (row.actor, row.verb, row.subject) == (ACTOR, "operator.issue", "bea")
    bea = tmp_path / "bea"
    words = ["device", "list", "--connect", address, "--certificate", bea / "operator.crt"]
    words += ["--key", bea / "operator.key", "--root", bea / "ca.crt"]
    assert ask(*words)[0] == 0
    code, told = ask("operator", "revoke", "bea")
    assert (code, told["error_code"]) == (4, "not-confirmed")
    assert told["message"].startswith("not confirmed: revoke bea: touches 1 certificate (bea (vi")
    assert "would revoke 1 certificate" in read("operator", "revoke", "bea", "--dry-run")
    assert ask(*words)[0] == 0
    assert "revoked 1 certificate" in read("operator", "revoke", "bea", "--why", "left", "--yes")
    code, told = ask(*words)
    assert (code, told["error_code"]) == (2, "certificate-revoked")
    assert ask("operator", "revoke", "anna", "--yes")[1]["error_code"] == "last-admin"
    serial = ask("operator", "list")[1]["operators"][0]["serial"]
    assert ask("operator", "revoke", serial, "--last-admin", "--yes")[0] == 0
    assert "revoked" in read("operator", "list")
    assert {each["state"] for each in ask("operator", "list")[1]["operators"]} == {"revoked"}


def test_a_pin_of_a_ward_names_it_whole_before(ask: Json, kept: Registry) -> None:
    for name in ("bob", "cyd"):
        kept.devices.tag(name, add=["ward=3"], actor="anna")
    words = ("release", "pin", 1, "--tag", "ward=3")
    head = kept.audit.head()
    assert "2 devices (bob, cyd); release 1" in ask(*words)[1]["message"]
    assert ask(*words, "--dry-run")[1]["touches"]["devices"] == ["bob", "cyd"]
    assert kept.audit.head() == head
    assert ask(*words, "--yes")[1]["touches"]["devices"] == ["bob", "cyd"]
    assert ask("release", "pin", "--none", "--tag", "ward=3", "--yes")[0] == 0
    assert kept.audit.head().seq == head.seq + 2


def test_a_replay_by_another_rule_is_told_beside_the_record(
    ask: Json, read: Callable[..., str]
) -> None:
    code, told = ask("round", "replay", 1, "--rule", "median")
    assert (code, told["same"], told["rule"], told["recorded_rule"]) == (0, False, "median", "mean")
    assert set(told["distance"]) == {"largest", "cosine"}
    text = read("round", "replay", 1, "--rule", "median")
    assert "another release, of 3 devices" in text
    assert told["digest"] in text
    assert f"{told['distance']['cosine']:.6f}" in text
    code, told = ask("round", "replay", 1, "--rule", "nonsense")
    assert (code, told["error_code"]) == (4, "rule")


def test_a_replay_that_differs_by_the_rounds_own_rule_exits_with_1(
    ask: Json, folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.registry.replay import Replayed

    monkeypatch.setattr(Replayed, "same", False)
    assert ask("round", "replay", 1)[0] == 1
    assert ask("round", "replay", 1, "--rule", "mean")[0] == 1
    assert ask("round", "replay", 1, "--rule", "median")[0] == 0
    assert json.dumps(ask("round", "replay", 1)[1]["distance"])
