"""The agent as a process of its own: it starts, answers, ends, and goes on where it was cut off."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.answering.labelled import labelled
from clients.agent.config import AGENT_SOCKET, BASE_COPY, save_config
from clients.agent.daemon import main
from clients.agent.learner import Learner
from clients.agent.serving.serve import Serving
from clients.agent.store import open_reader
from clients.agent.store.store import FILE_NAME
from clients.link.caller import ask, ping
from clients.link.records import Answer, Request
from fleet.adapt.base import Base
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    NAME,
    device_config,
    fill,
    plan_of,
    train_message,
)
from tests.clients.agent.serving.conftest import base, base_file, releases

__all__ = ["base", "base_file", "releases"]

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 120.0
NOTHING = Payload(np.zeros(0, np.float32), {})
EPOCHS = 40  # a second of training or more, so that there is a middle to be cut off in
DAMAGED_PAGES = 4


class Daemon:
    """A running daemon and the events that it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.words: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the first event of a name."""
        with self._changed:
            self._changed.wait_for(lambda: self.said(event) or self._over(), PATIENCE_S)
        found = self.said(event)
        assert found, (event, self.events, self.words)
        return found[0]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def ended(self) -> int:
        """Return the exit code, once it has one."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.ended()

    def _over(self) -> bool:
        return not self._reader.is_alive() or self.process.poll() is not None

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                if line.startswith("{"):
                    self.events.append(json.loads(line))
                else:
                    self.words.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextmanager
def started(state: Path) -> Iterator[Daemon]:
    """Start a daemon, and see to it that it ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "clients.agent.daemon", "--state", str(state)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        daemon = Daemon(process)
        try:
            yield daemon
        finally:
            process.kill()
            daemon.ended()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="cf-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def prepared(base_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("prepared") / "state"
    Serving(state).install_base(base_file)
    fill(state)
    config = device_config(max_temperature_c=120.0, metered_network="no")
    save_config(config, state)
    state.chmod(0o700)
    return state


@pytest.fixture
def state(prepared: Path, short: Path) -> Path:
    return Path(shutil.copytree(prepared, short / "state"))


@pytest.fixture(scope="module")
def long_plan(releases: list[Release]) -> dict[str, Any]:
    return {"epochs": EPOCHS, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def oracle(
    prepared: Path, base: Base, releases: list[Release], long_plan: dict[str, Any]
) -> Payload:
    """What the bare learner answers to the long plan."""
    with open_reader(prepared, clock=lambda: 0.0) as store:
        windows = labelled(store, base.record).windows
    return Learner(NAME, base, windows).answer_plan(train_message(releases[1], **long_plan))


def asked(state: Path, kind: str, payload: Payload = NOTHING) -> Answer:
    request = Request(kind, payload, PATIENCE_S)
    return ask(state / AGENT_SOCKET, request, away_s=PATIENCE_S)


def same(answer: Answer, other: Payload) -> bool:
    return (
        isinstance(answer, Payload)
        and answer.array.tobytes() == other.array.tobytes()
        and dict(answer.config) == dict(other.config)
    )


@pytest.mark.e2e
def test_a_daemon_repairs_its_store_answers_keeps_a_second_one_out_and_ends(state: Path) -> None:
    path = state / FILE_NAME
    content = bytearray(path.read_bytes())
    content[-DAMAGED_PAGES * 4096 :] = b"\xa5" * DAMAGED_PAGES * 4096
    path.write_bytes(bytes(content))
    with started(state) as daemon:
        ready = daemon.wait_for("agent.ready")
        assert (ready["device"], ready["pid"]) == (NAME, daemon.process.pid)
        assert "set aside" in daemon.wait_for("store.repaired")["detail"]
        about = ping(state / AGENT_SOCKET, PATIENCE_S)
        assert about is not None
        assert (about.device, about.pid, about.doing) == (NAME, daemon.process.pid, "")
        status = asked(state, "query.status")
        assert isinstance(status, Payload)
        assert status.config["release"] == 0
        with started(state) as second:
            failed = second.wait_for("agent.failed")
            assert second.ended() == 1
        assert failed["code"] == "agent-running"
        assert failed["hint"]
        assert ping(state / AGENT_SOCKET, PATIENCE_S) == about
        assert daemon.end(signal.SIGTERM) == 0
        assert daemon.said("agent.ended")
    assert not (state / AGENT_SOCKET).exists()


@pytest.mark.e2e
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)]
)
def test_who_asks_has_the_same_update_although_the_daemon_goes_away_while_it_trains(
    state: Path,
    releases: list[Release],
    long_plan: dict[str, Any],
    oracle: Payload,
    number: signal.Signals,
) -> None:
    message, plan = train_message(releases[1], **long_plan), plan_of(releases[1], **long_plan)
    with ThreadPoolExecutor(1) as caller:
        with started(state) as daemon:
            daemon.wait_for("agent.ready")
            answer = caller.submit(asked, state, "train", message)
            assert daemon.wait_for("training.started")["from_step"] == 0
            assert daemon.end(number) == (0 if number == signal.SIGTERM else -number)
            assert not daemon.said("training.finished")
        with open_reader(state, clock=lambda: 0.0) as store:
            kept = store.checkpoints.plan()
        with started(state) as daemon:
            assert same(answer.result(PATIENCE_S), oracle)
            again = daemon.wait_for("training.started")
            assert same(asked(state, "train", message), oracle)
            assert daemon.end(signal.SIGTERM) == 0
    if number == signal.SIGTERM:
        assert kept == plan.id
        assert again["from_step"] > 0
    with open_reader(state, clock=lambda: 0.0) as store:
        events = [entry.event for entry in store.journal.entries(plan.id)]
        assert (events.count("finished"), events[-1]) == (1, "repeated")
        assert store.outbox.waiting() == ()


def no_device(state: Path) -> None:
    shutil.rmtree(state)


def no_base(state: Path) -> None:
    (state / BASE_COPY).unlink()


def damaged_base(state: Path) -> None:
    (state / BASE_COPY).write_bytes(b"half")


def folder_for_a_store(state: Path) -> None:
    for path in state.glob(f"{FILE_NAME}*"):
        path.unlink()
    (state / FILE_NAME).mkdir()


def file_for_a_state(state: Path) -> None:
    shutil.rmtree(state)
    state.write_text("no folder")


def refusing_disk(state: Path) -> None:
    """Make the system refuse every byte; the test takes that back."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize(
    ("break_it", "code", "exit_code"),
    [
        (no_device, "no-device", 4),
        (no_base, "no-base", 4),
        (damaged_base, "bundle-damaged", 1),
        (folder_for_a_store, "store-unopenable", 1),
        (file_for_a_state, "unreadable", 1),
        (refusing_disk, "disk-failed", 1),
    ],
)
def test_a_daemon_that_cannot_run_says_why_and_what_to_do(
    state: Path,
    break_it: Any,
    code: str,
    exit_code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        break_it(state)
        found = main(["--state", str(state)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        for number, handler in before.items():
            signal.signal(number, handler)
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["event"], last["code"], found) == ("agent.failed", code, exit_code)
    assert last["detail"]
    assert last["hint"]
