"""The private core beside an agent that answers: in its thread, in the daemon, by the command."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.agent.answering.world import Cadence
from clients.agent.cli.root import run
from clients.agent.config import load_config, save_config
from clients.agent.private.worker import Worker
from clients.agent.serving.model import DeviceModel
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned, device_config, train_message
from tests.clients.agent.private.wearing import ON, commands, worn
from tests.clients.agent.test_daemon import PATIENCE_S, asked, started

HOUR = Cadence(private_s=3600.0)


class Told:
    """Collects events, and lets somebody wait for one."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._changed = threading.Condition()

    def say(self, event: str, **_: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, event: str, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.events.count(event) >= times, PATIENCE_S)


def test_each_release_that_a_message_brings_is_followed_at_once_and_the_thread_ends(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    told = Told()
    world = turned.world(say=told.say, cadence=HOUR)
    with worn(state, world) as wearer:
        worker = Worker(wearer.device.agent, wearer.cores, world)
        worker.start()
        try:
            told.wait_for("personal.served")
            wearer.bring(releases[2])
            told.wait_for("personal.finished", times=2)
        finally:
            world.stopping.set()
            assert worker.end(PATIENCE_S)
        assert wearer.row.release == 2


def test_a_bug_in_a_look_is_said_and_ends_neither_thread_nor_agent(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    world = turned.world(say=told.say, cadence=Cadence(private_s=0.01))
    with worn(state, world) as wearer:
        look, broken = wearer.cores.look, [True]
        monkeypatch.setattr(wearer.cores, "look", lambda: 1 // 0 if broken else look())
        worker = Worker(wearer.device.agent, wearer.cores, world)
        worker.start()
        try:
            told.wait_for("personal.failed", times=2)
            wearer.bring(releases[2])
            broken.clear()
            told.wait_for("personal.served")
        finally:
            world.stopping.set()
            assert worker.end(PATIENCE_S)


@pytest.fixture
def short(state: Path) -> Iterator[Path]:
    """The device under a path that leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="cf-") as name:
        place = Path(shutil.copytree(state, Path(name) / "state"))
        place.chmod(0o700)
        config = device_config(max_temperature_c=120.0, metered_network="no")
        save_config(config.model_copy(update={"personal": ON}), place)
        yield place


@pytest.mark.e2e
def test_a_daemon_learns_serves_and_goes_back_to_the_release_when_it_is_told(
    short: Path, releases: list[Release], capsys: pytest.CaptureFixture[str]
) -> None:
    with started(short) as daemon:
        daemon.wait_for("personal.served")
        asked(short, "train", train_message(releases[2], epochs=1))
        model = DeviceModel(short)
        assert model.served.number == 2
        assert run(["personal", "off", "--state", str(short), "--format", "json"]) == 0
        told = json.loads(capsys.readouterr().out)["data"]
        assert (told["on"], told["served"]) == (False, None)
        assert told["core"] is not None
        model = DeviceModel(short)
        assert model.digest == model.served.digest
        assert daemon.end(signal.SIGTERM) == 0
    assert load_config(short).personal == ON.model_copy(update={"on": False})


def test_the_command_shows_switches_and_drops(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Path(shutil.copytree(learnt, tmp_path / "state"))
    save_config(device_config().model_copy(update={"personal": ON}), state)

    ask = commands(state, capsys)
    shown = ask("personal", "show")["data"]
    assert (shown["on"], shown["served"]) == (True, DeviceModel(state).digest)
    assert shown["core"]["helps"]
    assert ask("status")["data"]["personal"] == shown
    assert run(["personal", "show", "--state", str(state)]) == 0
    assert "on; served: on " in capsys.readouterr().out
    assert run(["status", "--state", str(state)]) == 0
    assert "private core   on; served" in capsys.readouterr().out
    checks = {check["what"]: check for check in ask("release", "verify")["data"]["checks"]}
    assert checks["personal"]["digest"] == shown["served"]
    assert ask("personal", "off")["data"]["changed"]
    assert ask("personal", "show")["data"]["served"] is None
    assert not ask("personal", "off")["data"]["changed"]
    assert ask("personal", "on")["data"]["changed"]
    assert ask("personal", "drop")["error_code"] == "not-confirmed"
    dropped = ask("personal", "drop", "--yes")["data"]
    assert (dropped["dropped"], dropped["core"]) == (True, None)
    assert not ask("personal", "drop", "--yes")["data"]["dropped"]


def test_a_kernels_file_that_is_damaged_is_found_by_verify(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Path(shutil.copytree(learnt, tmp_path / "state"))
    [kernels] = (state / "model" / "own").glob("*.safetensors")
    kernels.write_bytes(kernels.read_bytes()[:-5])
    assert run(["release", "verify", "--state", str(state)]) == 1
    assert "personal: " in capsys.readouterr().err
