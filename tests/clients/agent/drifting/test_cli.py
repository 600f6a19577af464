from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients.agent.cli.root import run
from clients.agent.config import save_config
from clients.agent.drifting.kept import ALARMS
from clients.agent.store import open_store
from fleet.adapt.base import Base
from tests.clients.agent.answering.devices import NOON, device_config
from tests.clients.agent.drifting.streams import add, config_of, watch_all, watcher_of


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run([*words, "--format", "json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)["data"]
    return data


@pytest.fixture
def named(state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COREFLEET_STATE", str(state))
    return state


def test_it_shows_what_was_watched_and_seen(
    named: Path, base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(config_of(participate="drift"), named)
    with open_store(named, clock=NOON.timestamp) as store:
        watch_all(watcher_of(store, base))
    found = asked(capsys, "drift", "show")
    assert found["signals"][0] == {
        "signal": "label-free",
        "phase": "learning-reference",
        "windows": 0,
        "last_window": 0,
    }
    with open_store(named, clock=NOON.timestamp) as store:
        add(store, 400)
        add(store, 50, 400, turned=True)
        watch_all(watcher_of(store, base))
    found = asked(capsys, "drift", "show")
    assert found["signals"][0]["phase"] == "warming-up"  # anew, after the alarm
    assert found["signals"][0]["windows"] == 450 - 96
    assert (found["alarms_ever"], found["rounds_left"]) == (1, 3)
    [alarm] = found["alarms"]
    assert (alarm["signal"], alarm["at_s"]) == ("label-free", NOON.timestamp())
    assert run(["drift", "show"]) == 0
    text = capsys.readouterr().out
    assert "in 3 more round(s)" in text
    assert "label-free" in text
    shown = asked(capsys, "status")["store"]["drift"]
    assert shown["alarms"] == found["alarms"]
    assert run(["status"]) == 0
    assert "1 alarm(s), the last" in capsys.readouterr().out


def test_a_device_that_is_not_watched_says_how_to_change_that(
    named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(device_config(), named)
    assert run(["drift", "show"]) == 4
    assert "no-store" in capsys.readouterr().err
    with open_store(named, clock=NOON.timestamp):
        pass
    assert run(["drift", "show"]) == 0
    text = capsys.readouterr().out
    assert "set watch in [drift]" in text
    assert "always" in text
    assert run(["status"]) == 0
    assert "not watched" in capsys.readouterr().out


def test_another_versions_alarms_are_no_failure(
    named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(device_config(), named)
    with open_store(named, clock=NOON.timestamp) as store:
        store.state.put(ALARMS, {"version": 2, "alarms": "many"})
    assert asked(capsys, "drift", "show")["alarms"] == []
