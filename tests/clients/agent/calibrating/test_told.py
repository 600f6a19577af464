"""What people, the operator and the command are told of a device's own statistics."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from clients.agent.calibrating.kept import KEPT, drop_kept
from clients.agent.calibrating.summary import flat, line, standing
from clients.agent.cli.root import run
from clients.agent.config import load_config, save_config
from clients.agent.serving.model import DeviceModel
from clients.agent.store import open_store
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import NOON, Turned, device_config, train_message
from tests.clients.agent.calibrating.changed import OWN, add, wearing
from tests.clients.agent.private.wearing import commands
from tests.clients.agent.test_daemon import asked, started

NOTHING = Payload(np.zeros(0, np.float32), {})


@pytest.fixture
def state(installed: Path, tmp_path: Path, releases: list[Release]) -> Path:
    """A device that serves under statistics of its own."""
    state = Path(shutil.copytree(installed, tmp_path / "state"))
    save_config(device_config().model_copy(update={"statistics": OWN}), state)
    with wearing(state, Turned().world()) as wearer:
        add(wearer.device.store, 60, seed=1)
        wearer.serve(releases[1])
        wearer.cores.look()
    return state


def test_the_operators_health_query_hears_three_numbers(state: Path, turned: Turned) -> None:
    turned.seconds = 90.0
    with wearing(state, turned.world()) as wearer:
        health = wearer.device.ask("query.health", NOTHING).config
        told = {name: value for name, value in health.items() if name.startswith("statistics")}
        assert told == {
            "statistics-windows": 60,
            "statistics-served": True,
            "statistics-age-s": 90,
        }
        assert not [name for name in health if name.startswith("personal")]
        drop_kept(wearer.device.store)
        assert flat(wearer.device.store, wearer.device.serving.folder, NOON.timestamp()) == {}


def test_people_are_told_what_there_is_and_what_it_brought(state: Path, turned: Turned) -> None:
    with wearing(state, turned.world()) as wearer:
        folder, store = wearer.device.serving.folder, wearer.device.store
        found = standing(store, folder, True)
        assert (
            line(found) == "on; served, of 60 windows, not judged: no windows with labels are"
            " kept back"
        )
        add(store, 40, seed=2, labels=True)
        wearer.cores.look()
        assert line(standing(store, folder, True)).startswith("on; served, of 100 windows: on ")
        store.state.put(KEPT, {**store.state.get(KEPT), "digest": ""})
        assert "cannot be read" in line(standing(store, folder, False))
        drop_kept(store)
        assert line(standing(store, folder, True)) == "on; none taken yet"
        assert line(standing(store, folder, False)) == "off"


def test_the_command_shows_switches_and_drops(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = commands(state, capsys)
    shown = ask("statistics", "show")["data"]
    model = DeviceModel(state)
    assert (shown["on"], shown["served"]) == (True, model.digest)
    assert shown["kept"]["windows"] == 60
    assert ask("status")["data"]["statistics"] == shown
    assert ask("status")["data"]["personal"]["served"] is None
    assert run(["statistics", "show", "--state", str(state)]) == 0
    assert "on; served, of 60 windows" in capsys.readouterr().out
    assert run(["status", "--state", str(state)]) == 0
    assert "statistics     on; served" in capsys.readouterr().out
    checks = {check["what"]: check for check in ask("release", "verify")["data"]["checks"]}
    assert checks["personal"]["digest"] == shown["served"]
    assert ask("statistics", "off")["data"]["changed"]
    assert ask("statistics", "show")["data"]["served"] is None
    assert DeviceModel(state).digest == model.served.digest
    assert not load_config(state).statistics.own
    assert not ask("statistics", "off")["data"]["changed"]
    assert ask("statistics", "on")["data"]["changed"]
    assert load_config(state).statistics == OWN
    assert ask("statistics", "drop")["error_code"] == "not-confirmed"
    dropped = ask("statistics", "drop", "--yes")["data"]
    assert (dropped["dropped"], dropped["kept"]) == (True, None)
    assert not ask("statistics", "drop", "--yes")["data"]["dropped"]


@pytest.mark.e2e
def test_a_daemon_takes_them_trains_and_serves_under_them_and_goes_back_when_it_is_told(
    state: Path, releases: list[Release], capsys: pytest.CaptureFixture[str]
) -> None:
    config = device_config(max_temperature_c=120.0, metered_network="no")
    with tempfile.TemporaryDirectory(prefix="cf-") as name:  # a socket's name has to be short
        place = Path(shutil.copytree(state, Path(name) / "state"))
        place.chmod(0o700)
        save_config(config.model_copy(update={"statistics": OWN}), place)
        with open_store(place, clock=NOON.timestamp) as store:
            add(store, 128, seed=6)
            add(store, 20, seed=7, labels=True)
        with started(place) as daemon:
            daemon.wait_for("statistics.taken")
            daemon.wait_for("personal.served")
            asked(place, "train", train_message(releases[2], epochs=1))
            model = DeviceModel(place)
            assert model.served.number == 2
            assert run(["statistics", "off", "--state", str(place), "--format", "json"]) == 0
            assert json.loads(capsys.readouterr().out)["data"]["served"] is None
            model = DeviceModel(place)
            assert model.digest == model.served.digest
            assert daemon.end(signal.SIGTERM) == 0
        with open_store(place, clock=NOON.timestamp) as store:
            assert store.journal.entries()[-2].detail["statistics"]


def test_forgetting_by_the_command_takes_them_along(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["forget", "ada", "--yes", "--state", str(state), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["deleted"]["learned"] > 0
    assert not DeviceModel(state).personal
    with open_store(state, clock=NOON.timestamp) as store:
        assert store.state.get(KEPT) is None


def test_a_device_without_a_store_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(device_config(), tmp_path)
    assert run(["statistics", "show", "--state", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == "statistics     off"
    assert run(["statistics", "on", "--state", str(tmp_path)]) == 0
    assert "on; none taken yet" in capsys.readouterr().out
