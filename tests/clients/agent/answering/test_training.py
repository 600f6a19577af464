"""A plan is answered once, by what the device holds, and never by breaking a rule of its owner."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.answering.agent import LONGEST_TRAINING_S
from clients.agent.answering.labelled import labelled
from clients.agent.answering.world import Cadence
from clients.agent.learner import Learner
from clients.agent.power.readings import Readings
from fleet.adapt.base import Base
from fleet.errors import FleetError, MismatchError, RoundError, StorageError
from fleet.federate.releases import Release
from fleet.federate.wire import Payload, encode_plan
from tests.clients.agent.answering.devices import (
    NAME,
    Device,
    Turned,
    at_look,
    fill,
    opened,
    plan_of,
    release_message,
    train_message,
)
from tests.clients.agent.serving.factories import chain_of, make_base

EVERY_STEP = Cadence(checkpoint_s=0.0, look_s=0.0, busy_s=0.05)


def same(one: Payload, other: Payload) -> bool:
    return one.array.tobytes() == other.array.tobytes() and dict(one.config) == dict(other.config)


def events_of(device: Device) -> list[str]:
    return [entry.event for entry in device.store.journal.entries()]


@pytest.fixture
def oracle(device: Device, base: Base, releases: list[Release]) -> Payload:
    """What the bare learner answers from the same windows."""
    windows = labelled(device.store, base.record).windows
    return Learner(NAME, base, windows).answer_plan(train_message(releases[1]))


def test_an_update_is_the_learners_own_on_the_labelled_windows_that_train(
    device: Device, releases: list[Release], oracle: Payload
) -> None:
    assert same(device.ask("train", train_message(releases[1])), oracle)
    assert oracle.config["examples"] == 24
    assert np.abs(oracle.array).max() > 0


def test_a_plan_is_answered_once_with_the_same_bytes_also_after_a_restart(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        first = device.ask("train", train_message(releases[1]))
    fill(state, train=8, person="ben")  # what came later changes nothing
    with opened(state, turned.world()) as device:
        assert same(device.ask("train", train_message(releases[1])), first)
        assert events_of(device) == ["started", "finished", "repeated"]
        kept = device.store.outbox.get(plan_of(releases[1]).id)
        assert kept is not None
        assert kept.delivered_s is not None


def test_a_device_catches_up_to_the_release_that_a_plan_starts_from(
    device: Device, releases: list[Release]
) -> None:
    device.ask("train", train_message(releases[3]))
    served = device.serving.served
    assert served is not None
    assert (served.number, served.state) == (3, releases[3].state.digest)


def test_an_old_plan_is_answered_and_does_not_take_the_device_back(
    device: Device, releases: list[Release]
) -> None:
    device.ask("train", train_message(releases[3]))
    device.ask("train", train_message(releases[1]))
    served = device.serving.served
    assert served is not None
    assert served.number == 3


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"base": "0" * 64}, "wrong-base"),
        ({"frame": "0" * 64}, "wrong-frame"),
        ({"layout": "0" * 64}, "wrong-layout"),
        ({"state": "0" * 64}, "wrong-state"),
    ],
)
def test_what_is_not_for_this_device_is_refused_and_changes_nothing(
    device: Device, releases: list[Release], change: dict[str, str], code: str
) -> None:
    before = device.serving.served
    with pytest.raises(MismatchError) as caught:
        device.ask("train", train_message(releases[1], **change))
    assert caught.value.code == code
    assert device.serving.served == before
    assert device.serving.folder.release_names() == []


def test_a_plan_of_a_base_that_the_device_does_not_have_is_refused(device: Device) -> None:
    other = chain_of(make_base(seed=5), 1)[1]
    with pytest.raises(MismatchError, match="this device has") as caught:
        device.ask("train", train_message(other))
    assert caught.value.code == "wrong-base"


@pytest.mark.parametrize(
    ("policy", "readings", "code"),
    [
        ({}, Readings(temperature_c=90.0), "too-hot"),
        ({"only_on_mains": True}, Readings(on_mains=False), "on-battery"),
        ({}, Readings(metered=True), "metered"),
        ({"allowed_hours": ("22:00-06:00",)}, Readings(), "outside-hours"),
    ],
)
def test_the_owners_policy_refuses_with_its_reason_and_a_logged_reading(
    state: Path,
    turned: Turned,
    releases: list[Release],
    policy: dict[str, Any],
    readings: Readings,
    code: str,
) -> None:
    turned.readings = readings
    with opened(state, turned.world(), **policy) as device:
        with pytest.raises(RoundError, match=code) as caught:
            device.ask("train", train_message(releases[1]))
        assert caught.value.code == code
        assert device.store.journal.entries()[-1].detail["reason"] == code
        assert device.store.outbox.get(plan_of(releases[1]).id) is None
        last = (state / "decisions.jsonl").read_text().splitlines()[-1]
        assert code in last
        # What is no training goes on: the device serves what the fleet has learned.
        assert device.serving.served is not None
        assert device.serving.served.number == 1


def test_a_label_counts_as_new_for_the_stated_number_of_trainings(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world(), label_rounds=2) as device:
        for number in (1, 2):
            device.ask("train", train_message(releases[number]))
        with pytest.raises(RoundError) as caught:
            device.ask("train", train_message(releases[3]))
        assert caught.value.code == "no-new-labels"
        device.store.labels.range("ada", 100_000.0, 100_001.0, "lie", "ada")
        device.ask("train", train_message(releases[3]))
        # Of the last two trainings one came after the label, so one more is allowed.
        device.ask("train", train_message(releases[3], seed=10))
        with pytest.raises(RoundError, match="no-new-labels"):
            device.ask("train", train_message(releases[3], seed=11))
        assert events_of(device).count("finished") == 4


def test_without_labels_there_is_nothing_to_train_on(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world(), min_new_labels=0) as device:
        device.store.labels.range("ada", 0.0, 1e9, None, "ada")
        with pytest.raises(MismatchError) as caught:
            device.ask("train", train_message(releases[1]))
        assert caught.value.code == "no-windows"


def test_labels_that_the_base_does_not_know_are_left_out(
    device: Device, base: Base, releases: list[Release]
) -> None:
    device.store.labels.range("ada", 100_000.0, 100_011.0, "juggling", "ada")
    assert labelled(device.store, base.record).foreign == 2
    assert device.ask("train", train_message(releases[1])).config["examples"] == 22


def ticking(turned: Turned, by_s: float) -> Any:
    """A monotonic clock that goes on by itself whenever somebody looks."""

    def monotonic() -> float:
        turned.seconds += by_s
        return turned.seconds

    return monotonic


def test_training_ends_when_the_plans_time_is_over(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world(monotonic=ticking(turned, 1.0))) as device:
        with pytest.raises(RoundError, match="after step") as caught:
            device.ask("train", train_message(releases[1], deadline_s=5.0), limit_s=5.0)
        assert caught.value.code == "over-time"
        assert device.store.checkpoints.plan() is None


def test_a_plan_without_an_end_is_not_trained_for_ever(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world(monotonic=ticking(turned, 3600.0))) as device:
        with pytest.raises(RoundError, match="after step") as caught:
            device.ask("train", train_message(releases[1], deadline_s=1e300, epochs=100))
        assert caught.value.code == "over-time"
        assert turned.seconds < 2 * LONGEST_TRAINING_S


@pytest.mark.parametrize("number", [2**63, 10**400], ids=["no-int64", "no-file-name"])
def test_a_plan_of_an_impossible_release_is_refused_and_the_device_goes_on(
    device: Device, releases: list[Release], number: int
) -> None:
    plan = plan_of(releases[1]).model_copy(update={"release": number})
    with pytest.raises(MismatchError) as caught:
        device.ask("train", encode_plan(plan, releases[1].state))
    assert caught.value.code == "plan-malformed"
    device.ask("query.status", Payload(np.zeros(0, np.float32), {}))
    device.ask("train", train_message(releases[1]))


def test_the_days_budget_ends_training_and_a_new_day_has_its_own(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    world = turned.world(monotonic=ticking(turned, 1.0))
    with opened(state, world, max_training_s_per_day=3.0) as device:
        codes = []
        for number in range(2):
            with pytest.raises(RoundError) as caught:
                device.ask("train", train_message(releases[1], seed=number))
            codes.append((caught.value.code, "after step" in caught.value.message))
        assert codes == [("over-budget", True), ("over-budget", False)]
        turned.shift_s = 86_400.0
        device.set_policy(max_training_s_per_day=1000.0)
        device.ask("train", train_message(releases[1], seed=2))


def test_a_clock_two_days_ahead_and_put_right_again_stops_nothing(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world(), max_training_s_per_day=1000.0) as device:
        for number, shift_s in enumerate((172_800.0, 0.0, -172_800.0)):
            turned.shift_s = shift_s
            device.ask("train", train_message(releases[1], seed=number))
        assert events_of(device).count("finished") == 3


def test_heat_that_comes_during_training_stops_it(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    looks = itertools.count()

    def read() -> Readings:
        return Readings(temperature_c=40.0 if next(looks) < 2 else 95.0)

    with opened(state, turned.world(read=read, cadence=EVERY_STEP)) as device:
        with pytest.raises(RoundError, match="after step 2") as caught:
            device.ask("train", train_message(releases[1]))
        assert caught.value.code == "too-hot"


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_training_that_was_stopped_goes_on_from_its_checkpoint_to_the_same_update(
    state: Path, turned: Turned, releases: list[Release], optimiser: str
) -> None:
    message = train_message(releases[1], optimiser=optimiser)
    stopping = threading.Event()
    read = at_look(3, stopping.set)
    world = turned.world(cadence=EVERY_STEP, read=read, stopping=stopping)
    with opened(state, world) as device:
        with pytest.raises(RoundError) as caught:
            device.ask("train", message)
        assert caught.value.code == "agent-stopping"
        assert device.store.checkpoints.plan() == plan_of(releases[1], optimiser=optimiser).id
    with opened(state, turned.world()) as device:
        resumed = device.ask("train", message)
        assert device.store.journal.entries()[-2].detail["from_step"] == 4
        assert device.store.checkpoints.plan() is None
        windows = labelled(device.store, device.serving.held.base.record).windows
        assert same(resumed, Learner(NAME, device.serving.held.base, windows).answer_plan(message))


def test_a_checkpoint_on_other_windows_is_dropped(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    world = turned.world(cadence=EVERY_STEP)
    world.stopping.set()
    with opened(state, world) as device, pytest.raises(RoundError):
        device.ask("train", train_message(releases[1]))
    fill(state, train=8, person="ben")
    with opened(state, turned.world()) as device:
        update = device.ask("train", train_message(releases[1]))
        assert update.config["examples"] == 32
        assert turned.said("training.started")[-1]["from_step"] == 0


def test_an_update_of_a_person_who_is_forgotten_meanwhile_never_leaves(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    read = at_look(2, lambda: device.store.forget("ada"))
    with opened(state, turned.world(read=read, cadence=EVERY_STEP), min_new_labels=0) as device:
        with pytest.raises(RoundError) as caught:
            device.ask("train", train_message(releases[1]))
        assert caught.value.code == "person-forgotten"
        assert device.store.outbox.get(plan_of(releases[1]).id) is None
        assert device.store.checkpoints.plan() is None


def test_new_windows_under_a_forgotten_name_do_not_let_the_old_ones_update_leave(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    def meanwhile() -> None:
        device.store.forget("ada")
        fill(state)  # as an ingest that goes on

    world = turned.world(read=at_look(2, meanwhile), cadence=EVERY_STEP)
    with opened(state, world, min_new_labels=0) as device:
        with pytest.raises(RoundError) as caught:
            device.ask("train", train_message(releases[1]))
        assert caught.value.code == "person-forgotten"
        assert device.store.outbox.get(plan_of(releases[1]).id) is None
        assert device.ask("train", train_message(releases[1], seed=1)).config["examples"] == 24


def train_often(device: Device, release: Release) -> None:
    for number in range(100):
        device.ask("train", train_message(release, seed=number))


@pytest.mark.parametrize(
    ("setting", "code"), [("max_page_count = 1", "disk-full"), ("query_only = ON", "read-only")]
)
def test_a_disk_that_refuses_loses_the_update_and_nothing_else(
    state: Path, turned: Turned, releases: list[Release], setting: str, code: str
) -> None:
    def read() -> Readings:
        device.store.database.connection.execute(f"PRAGMA {setting}").fetchall()
        return Readings()

    with opened(state, turned.world(read=read)) as device:
        before = device.store.windows.counts()
        with pytest.raises(StorageError) as caught:
            train_often(device, releases[1])  # the last page has some room left
        assert caught.value.code == code
        assert device.store.windows.counts() == before
    with opened(state, turned.world()) as device:
        device.ask("train", train_message(releases[1]))


def test_a_plan_may_limit_steps_and_memory(device: Device, releases: list[Release]) -> None:
    update = device.ask("train", train_message(releases[1], max_steps=3))
    assert update.config["steps"] == 3
    with pytest.raises(FleetError) as caught:
        device.ask("train", train_message(releases[1], memory_budget=1))
    assert caught.value.code == "memory-budget-too-small"
    device.set_policy(memory_budget_bytes=1)
    with pytest.raises(FleetError) as caught:
        device.ask("train", train_message(releases[1], seed=3))
    assert caught.value.code == "memory-budget-too-small"


def test_a_release_message_is_no_plan(device: Device, releases: list[Release]) -> None:
    with pytest.raises(MismatchError) as caught:
        device.ask("train", release_message(releases[1]))
    assert caught.value.code == "plan-malformed"
