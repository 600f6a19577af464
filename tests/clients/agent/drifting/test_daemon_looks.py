from __future__ import annotations

import json
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from clients.agent import daemon
from clients.agent.answering.agent import Agent
from clients.agent.config import save_config
from clients.agent.daemon import served_agent
from clients.agent.drifting.kept import window_cursor_of
from clients.agent.drifting.watcher import Watcher
from clients.agent.store import Store, open_reader, open_store
from fleet.errors import StorageError
from tests.clients.agent.answering.devices import NOON
from tests.clients.agent.drifting.streams import add, config_of


def test_the_daemon_looks_for_drift_at_its_stated_times(state: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="cf-") as short:
        folder = Path(shutil.copytree(state, Path(short) / "state"))
        save_config(config_of(), folder)
        folder.chmod(0o700)
        with open_store(folder, clock=NOON.timestamp) as store:
            add(store, 150)
        stopping = threading.Event()
        with served_agent(folder, stopping) as chores:
            chores()
        with open_reader(folder, clock=NOON.timestamp) as store:
            assert window_cursor_of(store) == 150


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StorageError("disk-full", "no space is left"), "disk-full"),
        (ZeroDivisionError("a bug"), "agent-failed"),
    ],
)
def test_a_look_for_drift_that_fails_is_said_and_keeps_nothing_else_from_being_done(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    done: list[str] = []

    def fail(_: Watcher) -> bool:
        raise error

    monkeypatch.setattr(daemon, "TIDY_S", 0.0)
    monkeypatch.setattr(Watcher, "step", fail)
    with tempfile.TemporaryDirectory(prefix="cf-") as short:
        folder = Path(shutil.copytree(state, Path(short) / "state"))
        save_config(config_of(), folder)
        folder.chmod(0o700)
        with served_agent(folder, threading.Event()) as chores:
            monkeypatch.setattr(Store, "tidy", lambda _: done.append("tidied"))
            monkeypatch.setattr(Agent, "finish", lambda _: done.append("finished"))
            chores()
            chores()
    assert done == ["tidied", "finished"] * 2
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    failed = [each for each in said if each["event"] == "drift.failed"]
    assert [each["reason"] for each in failed] == [reason] * 2
    assert str(error) in failed[0]["detail"]
