from __future__ import annotations

import os
from typing import Any

import pytest

from fleet.errors import FleetError, StorageError
from fleet.federate.signing import make_key
from fleet.supervise.record import RunLock
from server.control.backups.restoring import ASIDE, staged
from server.control.certificates import Identity
from server.control.operators import Operators
from server.control.reach import REGISTRY, opened_fleet
from server.control.roles import Role
from server.registry import Registry, open_registry
from server.service.authority import make_authority
from server.service.config import ServerConfig, load_config, save_config
from server.service.folder import ServerFolder, write_private
from server.service.processes import PROGRAM
from tests.server.control.backups.backing_up import AT, LATER, Take, put_back, snapshot
from tests.server.control.controlling import NOW
from tests.server.registry.filled import Clock, key_of


def test_what_was_there_is_moved_aside_and_named(
    take: Take, home: ServerFolder, kept: Registry, clock: Clock
) -> None:
    operators = Operators(kept, clock)
    operators.issued(Identity("bea", Role.viewer, "b" * 40), clock() + 60, actor="root")
    file = take()
    kept.devices.revoke("bob", why="lost", actor="anna")
    operators.revoke("bea", why="", actor="root")
    head = kept.audit.head()
    kept.close()
    home.standing.write_text("{}")
    with staged(file, home) as found:
        assert "registry.sqlite" in found.moved
        assert "3 devices, 2 rounds, 3 releases" in found.replaces
        devices, operators_ = found.change.warnings
        assert devices.startswith("lets in again: bob (key ")
        assert operators_.startswith("lets in again: 1 revoked certificate of operators")
        aside = found.place("root", AT)
    assert aside is not None
    assert aside.name == f"{ASIDE}20261121T220000"
    with open_registry(aside / REGISTRY, clock=clock) as moved:
        assert moved.devices.get("bob").revoked is not None
        assert moved.audit.verify() == head
    assert snapshot(aside)["standing.json"] == b"{}"
    assert not home.standing.exists()
    # What is the same is left, and so are the keys that belong to it.
    assert home.authority_key.exists()
    assert not (aside / "ca.key").exists()
    with opened_fleet(home).registry as registry:
        assert registry.devices.get("bob").revoked is None


def test_a_revoked_key_that_comes_back_is_told_though_its_name_has_a_new_one(
    take: Take, home: ServerFolder, kept: Registry
) -> None:
    old, file = kept.devices.get("bob").fingerprint, take()
    kept.devices.revoke("bob", why="stolen", actor="anna")
    new = kept.devices.enroll("bob", key_of("bob's second"), actor="anna").fingerprint
    kept.close()
    with staged(file, home, looking=True) as found:
        told = found.record()
        again, out = found.change.warnings
    assert told["lets_in_again"] == [{"device": "bob", "fingerprint": old}]
    assert told["shuts_out"] == [{"device": "bob", "fingerprint": new}]
    assert told["forgets"]["revoked_devices"] == ["bob"]
    assert again.startswith(f"lets in again: bob (key {old[:16]}…)")
    assert out.startswith(f"shuts out: bob (key {new[:16]}…)")
    put_back(file, home)
    with opened_fleet(home).registry as registry:
        assert registry.devices.get("bob").fingerprint == old


def test_a_quarantine_that_a_restore_ends_is_told(
    take: Take, home: ServerFolder, kept: Registry
) -> None:
    key, file = kept.devices.get("bob").fingerprint, take()
    kept.devices.quarantine("bob", why="lies", actor="anna")
    kept.close()
    with staged(file, home, looking=True) as found:
        assert found.record()["ends_quarantine"] == [{"device": "bob", "fingerprint": key}]
        (line,) = found.change.warnings
    assert line.startswith(f"ends the quarantine of: bob (key {key[:16]}…)")


def test_keys_that_fit_no_longer_are_moved_aside_too(take: Take, elsewhere: ServerFolder) -> None:
    file, other = take(), make_authority(NOW)
    elsewhere.make()
    save_config(ServerConfig(), elsewhere)
    write_private(elsewhere.authority, other.certificate)
    write_private(elsewhere.authority_key, other.key)
    write_private(elsewhere.release_key, make_key())
    found, aside = put_back(file, elsewhere)
    assert aside is not None
    assert {"ca.crt", "ca.key", "release-key"} <= set(snapshot(aside))
    assert found.lacking == ["ca.key", "release-key"]
    assert not elsewhere.authority_key.exists()


def test_a_registry_that_cannot_be_read_is_moved_aside_as_well(
    take: Take, home: ServerFolder, kept: Registry
) -> None:
    file = take()
    kept.close()
    (home.path / REGISTRY).write_bytes(b"x" * 8192)
    with staged(file, home) as found:
        assert "a registry that cannot be read" in found.replaces
        assert "cannot be told" in found.change.warnings[0]
        found.place("root", AT)
    with opened_fleet(home).registry as registry:
        assert registry.audit.verify().seq


def test_while_a_server_runs_nothing_is_restored(
    take: Take, home: ServerFolder, elsewhere: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = take()
    lock = RunLock(home.path, PROGRAM)
    before = snapshot(home.path)
    with pytest.raises(StorageError) as refused, staged(file, home):
        pass
    lock.close()
    assert refused.value.code == "already-running"
    left = {"processes": {"superlink": {"alive": True}, "front": {"alive": False}}}
    monkeypatch.setattr("server.control.backups.restoring.standing", lambda _: left)
    with pytest.raises(StorageError, match="superlink of") as refused, staged(file, home):
        pass
    assert refused.value.code == "left-running"
    assert snapshot(home.path) == before


def test_a_backup_is_looked_at_beside_a_running_server_and_put_in_place_by_nobody(
    take: Take, home: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = take()
    lock = RunLock(home.path, PROGRAM)
    before = snapshot(home.path)
    left = {"processes": {"superlink": {"alive": True}, "front": {"alive": False}}}
    monkeypatch.setattr("server.control.backups.restoring.standing", lambda _: left)
    with staged(file, home, looking=True) as found:
        assert found.record()["running"] == ["superlink"]
        assert "registry.sqlite" in found.moved
        with pytest.raises(ValueError, match="only looked at"):
            found.place("root", AT)
    lock.close()
    assert snapshot(home.path) == before


def test_nothing_starts_where_a_backup_is_looked_at_in_a_folder_that_goes_again(
    take: Take, elsewhere: ServerFolder
) -> None:
    with staged(take(), elsewhere, looking=True), pytest.raises(StorageError) as refused:
        RunLock(elsewhere.path, PROGRAM)
    assert refused.value.code == "already-running"
    assert not elsewhere.path.exists()


def test_nothing_starts_while_it_is_being_restored(take: Take, elsewhere: ServerFolder) -> None:
    with staged(take(), elsewhere), pytest.raises(StorageError) as refused:
        RunLock(elsewhere.path, PROGRAM)
    assert refused.value.code == "already-running"
    assert not elsewhere.path.exists()


def test_a_restore_that_was_cut_off_starts_nothing_and_is_completed_by_another(
    take: Take, home: ServerFolder, kept: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = take()
    kept.close()
    calls, replace = [], os.replace

    def failing(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 6:
            raise OSError(5, "Input/output error", str(target))
        replace(source, target)

    with staged(file, home) as found:
        with monkeypatch.context() as patch:
            patch.setattr("server.control.backups.restoring.os.replace", failing)
            with pytest.raises(StorageError) as failed:
                found.place("root", AT)
        assert failed.value.code == "write-failed"
    with pytest.raises(FleetError) as refused:
        load_config(home)
    assert refused.value.code == "no-server"
    put_back(file, home, LATER)
    with opened_fleet(home).registry as registry:
        assert registry.replay(2).same
