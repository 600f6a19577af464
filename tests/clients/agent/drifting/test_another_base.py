"""Another base is no drift: the watcher begins anew by it, and goes on watching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.agent.drifting.kept import memory_of, reference_of, window_cursor_of
from fleet.adapt.base import Base
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Device, Turned, opened, release_message
from tests.clients.agent.answering.moving import Move, growth_of, rebase_of
from tests.clients.agent.drifting.streams import add, alarmed, config_of
from tests.clients.agent.serving.factories import LABELS

LOOKS = 5


@pytest.fixture
def device(state: Path, turned: Turned) -> Iterator[Device]:
    with opened(state, turned.world()) as made:
        made.config[0] = config_of(signals=("label-free", "loss"))
        yield made


@pytest.fixture(scope="module")
def move(base: Base, releases: list[Release]) -> Move:
    return rebase_of(base, releases[1])


def looked(device: Device) -> None:
    for _ in range(LOOKS):
        device.agent.watch()


def seen(device: Device, signal: str) -> tuple[str, int]:
    memory = memory_of(device.store, signal)  # type: ignore[arg-type]
    assert memory is not None
    return memory.base, memory.seen


def test_a_move_raises_no_alarm_and_the_stream_goes_on_by_a_reference_of_the_new_base(
    device: Device, turned: Turned, base: Base, move: Move
) -> None:
    add(device.store, 400)
    looked(device)
    assert seen(device, "label-free") == (base.digest, 400 - 96)
    device.ask("query.release", move.message())
    looked(device)
    add(device.store, 300, 400)
    looked(device)
    reference = reference_of(device.store)
    assert reference is not None
    assert reference["base"] == move.base.digest
    # The windows from the move on, each once: 96 make the reference.
    assert seen(device, "label-free") == (move.base.digest, 300 - 96)
    assert window_cursor_of(device.store) == 700
    assert (alarmed(device.store), turned.said("drift.alarm")) == ([], [])
    assert turned.said("drift.restarted") == []


def test_drift_after_the_move_raises_its_alarm(device: Device, turned: Turned, move: Move) -> None:
    add(device.store, 200)
    looked(device)
    device.ask("query.release", move.message())
    add(device.store, 400, 200)
    looked(device)
    assert alarmed(device.store) == []
    add(device.store, 150, 600, turned=True)
    looked(device)
    [(signal, window)] = alarmed(device.store)
    assert signal == "label-free"
    assert 600 <= window < 750


def test_a_watcher_that_starts_again_after_the_move_goes_on_by_the_new_base(
    state: Path, turned: Turned, move: Move
) -> None:
    for first, message in ((0, move.message()), (200, None)):
        with opened(state, turned.world()) as device:
            device.config[0] = config_of()
            add(device.store, 200, first)
            looked(device)
            if message is not None:
                device.ask("query.release", message)
    with opened(state, turned.world()) as device:
        device.config[0] = config_of()
        looked(device)
        assert seen(device, "label-free") == (move.base.digest, 200 - 96)
        assert alarmed(device.store) == []


def test_labels_of_before_are_not_shown_again_and_those_of_after_are_by_the_new_base(
    device: Device, base: Base, releases: list[Release]
) -> None:
    def label(first: int, count: int) -> None:
        add(device.store, count, first)
        for place in range(first, first + count):
            at = place * 10.0
            device.store.labels.range("ada", at, at + 1, LABELS[place % len(LABELS)], "ada")

    move = growth_of(base, releases[1])
    label(0, 40)
    looked(device)
    assert seen(device, "loss") == (base.digest, 40)
    device.ask("query.release", move.message())
    looked(device)
    label(40, 24)
    looked(device)
    assert seen(device, "loss") == (move.base.digest, 24)
    device.ask("query.release", release_message(releases[1]))
    label(64, 8)
    looked(device)
    assert seen(device, "loss") == (base.digest, 8)
