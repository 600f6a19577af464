"""Laws of a training for the fleet under a device's own statistics."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.answering.labelled import labelled
from clients.agent.answering.packing import pack_update
from clients.agent.answering.world import Cadence
from clients.agent.calibrating.kept import drop_kept, kept_of
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.learner import Learner, Workbench, workbench
from clients.agent.private.removing import forget
from clients.agent.serving.probe import normalisation_of
from clients.agent.store import open_store
from clients.link.records import Metrics
from fleet.adapt.base import Base
from fleet.continual.calibration import Calibration, calibrated, calibration_of, trust_of
from fleet.errors import RoundError
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    NAME,
    NOON,
    Turned,
    at_look,
    release_message,
    train_message,
)
from tests.clients.agent.calibrating.changed import OWN, add, wearing, windows_of

EVERY_STEP = Cadence(checkpoint_s=0.0, look_s=0.0)
NOTHING = Payload(np.zeros(0, np.float32), {})


@pytest.fixture
def state(installed: Path, tmp_path: Path) -> Path:
    """A device with windows without labels, and a few with one."""
    state = Path(shutil.copytree(installed, tmp_path / "state"))
    filled(state)
    return state


def filled(state: Path) -> None:
    with open_store(state, clock=NOON.timestamp) as store:
        add(store, 24, seed=1, labels=True)
        add(store, 12, seed=2, side="held-out", labels=True)
        add(store, 40, seed=3, person="ben")


def test_an_update_is_the_learners_own_under_the_newest_statistics(
    state: Path, base: Base, turned: Turned, releases: list[Release]
) -> None:
    message = train_message(releases[1])
    with wearing(state, turned.world()) as wearer:
        update = wearer.device.ask("train", message)
        found = labelled(wearer.device.store, base.record)
        kept = kept_of(wearer.device.store)
        entry = wearer.device.store.journal.entries()[-2]
    x = np.concatenate([windows_of(24, seed=1), windows_of(12, seed=2), windows_of(40, seed=3)])
    own = calibration_of(base, normalisation_of(base.record).apply(x), trust=trust_of(76), batch=32)
    bench = Workbench(base, calibrated(workbench(base).network, own), own.maps)
    wanted = Learner(NAME, base, found.windows, bench=bench).answer_plan(message)
    assert pack_update(update) == pack_update(wanted)
    assert kept is not None
    assert entry.detail["statistics"] == kept.digest
    plain = Learner(NAME, base, found.windows).answer_plan(message)
    assert pack_update(update) != pack_update(plain)


def test_who_is_forgotten_while_they_are_taken_is_named_in_no_journal(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    with wearing(state, turned.world()) as wearer:
        store = wearer.device.store

        def meanwhile(*args: Any, **words: Any) -> Calibration:
            forget(state, store, "ada")
            return calibration_of(*args, **words)

        monkeypatch.setattr("clients.agent.calibrating.statistics.calibration_of", meanwhile)
        with pytest.raises(RoundError) as caught:
            wearer.device.ask("train", train_message(releases[1]))
        assert caught.value.code == "person-forgotten"
        assert "started" not in [entry.event for entry in store.journal.entries()]
        assert store.database.number("SELECT count(*) FROM journal_people") == 0


def test_off_every_byte_is_that_of_a_device_that_never_had_any(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    told: list[list[bytes]] = []
    for number, had in enumerate((True, False)):
        place = Path(shutil.copytree(state, tmp_path / f"device-{number}"))
        if had:
            with wearing(place, turned.world()) as wearer:
                wearer.device.agent.statistics.take()
                assert kept_of(wearer.device.store) is not None
        with wearing(place, turned.world(), OwnStatistics()) as wearer:
            ask = wearer.device.ask
            told.append(
                [
                    pack_update(ask("train", train_message(releases[1]))),
                    pack_update(ask("train", train_message(releases[2], compression="int8"))),
                    repr(ask("evaluate", release_message(releases[2]))).encode(),
                    pack_update(ask("query.status", NOTHING)),
                    repr(wearer.device.store.journal.entries()).encode(),
                ]
            )
            assert wearer.cores.look() == "off"
            told[-1].append(wearer.model().digest.encode())
    assert told[0] == told[1]


def test_evaluations_and_status_are_of_the_release_under_the_fleets_statistics(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    told: list[tuple[object, object, bytes]] = []
    for number, own in enumerate((OWN, OwnStatistics())):
        place = Path(shutil.copytree(state, tmp_path / f"device-{number}"))
        with wearing(place, turned.world(), own) as wearer:
            wearer.serve(releases[1])
            wearer.cores.look()
            assert wearer.model().personal is own.own
            metrics = wearer.device.ask("evaluate", release_message(releases[2]))
            assert isinstance(metrics, Metrics)
            status = wearer.device.ask("query.status", NOTHING).config
            assert status["serves"] == wearer.release_digest
            served = wearer.device.ask("query.release", release_message(releases[3]))
            told.append((metrics, status, pack_update(served)))
    assert told[0] == told[1]


@pytest.mark.parametrize("own", [OWN, OWN.model_copy(update={"min_windows": 100})])
def test_a_killed_training_goes_on_to_the_same_bits_although_windows_came_meanwhile(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path, own: OwnStatistics
) -> None:
    message = train_message(releases[1])
    place = Path(shutil.copytree(state, tmp_path / "undisturbed"))
    with wearing(place, turned.world(), own) as wearer:
        wanted = pack_update(wearer.device.ask("train", message))
        before = kept_of(wearer.device.store)
        assert (before is None) == (own.min_windows == 100)
    stopped(state, turned, own, message)
    with wearing(state, turned.world(), own) as wearer:
        add(wearer.device.store, 90, seed=4)
        wearer.cores.look()
        now = kept_of(wearer.device.store)
        assert now is not None
        assert before is None or now.digest != before.digest
        assert pack_update(wearer.device.ask("train", message)) == wanted
        started = wearer.device.store.journal.entries()[-2]
        assert started.detail["from_step"] == 4
        assert started.detail.get("statistics") == (before and before.digest)
        # The next plan is trained under the newest.
        wearer.device.ask("train", train_message(releases[2]))
        assert wearer.device.store.journal.entries()[-2].detail["statistics"] == now.digest


@pytest.mark.parametrize("way", ["off", "drop", "damaged"])
def test_without_those_of_its_checkpoint_a_training_begins_again(
    state: Path, turned: Turned, releases: list[Release], way: str
) -> None:
    message = train_message(releases[1])
    stopped(state, turned, OWN, message)
    with wearing(state, turned.world(), OwnStatistics() if way == "off" else OWN) as wearer:
        store = wearer.device.store
        if way == "drop":
            drop_kept(store)
        elif way == "damaged":
            with store.transaction() as connection:
                connection.execute(
                    "UPDATE state SET value = replace(value, 'A', 'B')"
                    " WHERE key LIKE 'learned.statistics%'"
                )
        add(store, 90, seed=4)
        wearer.device.ask("train", message)
        assert store.journal.entries()[-2].detail["from_step"] == 0


def stopped(state: Path, turned: Turned, own: OwnStatistics, message: Payload) -> None:
    """Let an agent end in the middle of a training, with a checkpoint."""
    stopping = threading.Event()
    read = at_look(3, stopping.set)
    world = turned.world(cadence=EVERY_STEP, read=read, stopping=stopping)
    with wearing(state, world, own) as wearer:
        with pytest.raises(RoundError) as refused:
            wearer.device.ask("train", message)
        assert refused.value.code == "agent-stopping"


def test_an_update_under_statistics_of_somebody_who_is_forgotten_meanwhile_never_leaves(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    # No window with a label is ben's: only the statistics are.
    read = at_look(2, lambda: forget(state, wearer.device.store, "ben"))
    with wearing(state, turned.world(cadence=Cadence(look_s=0.0), read=read)) as wearer:
        with pytest.raises(RoundError) as refused:
            wearer.device.ask("train", train_message(releases[1]))
        assert refused.value.code == "person-forgotten"
        assert wearer.device.store.outbox.waiting() == ()
        assert wearer.device.store.checkpoints.plan() is None
        assert kept_of(wearer.device.store) is None


def test_a_waiting_update_goes_with_those_whose_windows_were_in_the_statistics(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with wearing(state, turned.world()) as wearer:
        wearer.device.ask("train", train_message(releases[1]))
        done = forget(state, wearer.device.store, "ben")
        assert len(done.server_holds) == 1
