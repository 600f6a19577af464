"""Through the agent, in process: a device takes part because something has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.config import DeviceConfig
from clients.agent.drifting.participation import rounds_left
from clients.agent.power.readings import Readings
from fleet.errors import RoundError
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    Device,
    Turned,
    device_config,
    fill,
    opened,
    train_message,
)
from tests.clients.agent.drifting.streams import add, alarmed, config_of

NOTHING = Payload(np.zeros(0, np.float32), {})
SEEDS = iter(range(1, 10_000))


def config(**drift: Any) -> DeviceConfig:
    return config_of(**{"participate": "drift", "rounds": 2, **drift})


def train(device: Device, release: Release, **changes: Any) -> Any:
    """Ask for a training that was never asked for."""
    return device.ask("train", train_message(release, seed=next(SEEDS), **changes))


def refused(device: Device, release: Release) -> RoundError:
    with pytest.raises(RoundError) as caught:
        train(device, release)
    return caught.value


@pytest.fixture
def state(state: Path) -> Path:
    fill(state)
    return state


def test_it_takes_part_after_joining_and_after_an_alarm_and_else_says_why_not(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world(), min_new_labels=0) as device:
        device.config[0] = config()
        add(device.store, 400)
        device.agent.watch()
        for number in (1, 2):
            train(device, releases[number])
        turned.seconds = 600.0
        error = refused(device, releases[3])
        assert error.code == "no-drift"
        assert "nothing changed since 2026-11-21T12:00+00:00" in error.message
        assert device.store.journal.entries()[-1].detail["reason"] == "no-drift"
        add(device.store, 100, 400, turned=True)
        device.agent.watch()
        assert len(alarmed(device.store)) == 1
        for number in (3, 4):
            train(device, releases[number])
        error = refused(device, releases[4])
        assert error.code == "no-drift"
        assert "since 2026-11-21T12:10" in error.message


def test_what_is_refused_or_asked_again_costs_no_round(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world(), min_new_labels=0) as device:
        device.config[0] = config()
        turned.readings = Readings(temperature_c=99.0)
        assert refused(device, releases[1]).code == "too-hot"
        turned.readings = Readings(temperature_c=20.0)
        message = train_message(releases[1])
        first = device.ask("train", message)
        assert device.ask("train", message).array.tobytes() == first.array.tobytes()
        assert rounds_left(device.store, config().drift) == 1
        train(device, releases[1])
        # Asked again for a plan that was answered, it answers.
        assert device.ask("train", message).array.tobytes() == first.array.tobytes()
        assert "since 2026-11-21T12:00" in refused(device, releases[1]).message
        # The owner follows from the next plan on.
        device.config[0] = config(rounds=3)
        train(device, releases[1])
        device.config[0] = config(participate="always")
        train(device, releases[1])


def test_rounds_left_survive_a_restart(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    for left in (2, 1):
        with opened(state, turned.world(), min_new_labels=0) as device:
            device.config[0] = config()
            assert rounds_left(device.store, config().drift) == left
            train(device, releases[1])
    with opened(state, turned.world(), min_new_labels=0) as device:
        device.config[0] = config()
        assert refused(device, releases[1]).code == "no-drift"


def test_status_and_health_tell_of_alarms_and_nothing_where_there_are_none(
    state: Path, turned: Turned
) -> None:
    with opened(state, turned.world()) as device:
        silent = device.ask("query.status", NOTHING).config
        device.config[0] = config()
        add(device.store, 400)
        device.agent.watch()
        assert device.ask("query.status", NOTHING).config == silent
        add(device.store, 100, 400, turned=True)
        device.agent.watch()
        turned.seconds = 90.0
        found = device.ask("query.status", NOTHING).config
        assert found == {**silent, "alarms": 1, "alarm_age_s": 90}
        assert DeviceStatus.model_validate(dict(found)).alarms == 1
        health = device.ask("query.health", NOTHING).config
        assert (health["drift-alarms"], health["drift-age-s"]) == (1, 90)
        assert health["counter.drift.alarms.label-free"] == 1
        device.config[0] = device_config()
        assert device.ask("query.status", NOTHING).config == silent


def test_it_looks_only_while_there_is_no_other_work_and_ends_with_the_agent(
    state: Path, turned: Turned
) -> None:
    world = turned.world()
    with opened(state, world) as device:
        device.config[0] = config()
        with device.agent.aside() as free:
            assert free
            device.agent.watch()
        assert rounds_left(device.store, config().drift) == 2
        assert device.store.state.get("drift.participation") is None
        device.agent.watch()
        assert device.store.state.get("drift.participation") is not None
        add(device.store, 400)
        world.stopping.set()
        device.agent.watch()
        assert device.store.state.get("drift.cursor.label-free") is None
