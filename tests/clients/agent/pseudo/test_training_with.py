"""Laws of a training for the fleet with labels that the device gave its windows itself."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.answering.between import space_of
from clients.agent.answering.labelled import labelled
from clients.agent.answering.packing import pack_update, unpack_fisher
from clients.agent.answering.world import Cadence
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.calibrating.statistics import BATCH_WINDOWS
from clients.agent.continual_labels import guessed, probabilities
from clients.agent.learner import Learner, Windows, workbench
from clients.agent.policy import Policy
from clients.agent.pseudo import labelling
from clients.agent.pseudo.kept import KEPT, kept_of
from clients.agent.pseudo.settings import PseudoLabels
from clients.agent.pseudo.summary import line, standing
from clients.agent.serving.probe import normalisation_of
from clients.agent.store import open_store
from clients.agent.store.records import Loaded
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.continual.pseudo import choose
from fleet.errors import MismatchError, RoundError
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    NAME,
    NOON,
    Device,
    Turned,
    at_look,
    plan_of,
    train_message,
)
from tests.clients.agent.answering.guarded import fisher_by_hand
from tests.clients.agent.calibrating.changed import OWN
from tests.clients.agent.pseudo.unlabelled import ON, add, guessing
from tests.clients.agent.serving.factories import CHANNELS, LABELS, WINDOW

EVERY_STEP = Cadence(checkpoint_s=0.0, look_s=0.0)
OFF = PseudoLabels()


def unlabelled(device: Device) -> Loaded:
    return device.store.windows.load((CHANNELS, WINDOW), split="train", labelled=False)


def said(device: Device, event: str = "started") -> dict[str, Any]:
    entries = [one for one in device.store.journal.entries() if one.event == event]
    found: dict[str, Any] = entries[-1].detail["pseudo-labels"]
    return found


def test_an_update_is_the_learners_own_with_the_windows_that_choose_takes(
    state: Path, base: Base, turned: Turned, releases: list[Release]
) -> None:
    message = train_message(releases[1])
    with guessing(state, turned.world()) as device:
        update = device.ask("train", message)
        windows, loaded = labelled(device.store, base.record).windows, unlabelled(device)
        started = device.store.journal.entries()[-2]
        kept = kept_of(device.store)
    x = normalisation_of(base.record).apply(loaded.x)
    network = workbench(base).served(releases[1].state)
    rows, labels = choose(probabilities(network, x), threshold=0.9, per_class=3, total=12)
    assert len(rows) == 12
    joined = Windows(
        np.concatenate([windows.train_x, x[rows]]),
        np.concatenate([windows.train_y, labels]),
        windows.test_x,
        windows.test_y,
    )
    wanted = Learner(NAME, base, joined).answer_plan(message)
    assert pack_update(update) == pack_update(wanted)
    assert update.config["examples"] == 24 + 12
    assert kept is not None
    assert (kept.ids, kept.labels) == (tuple(loaded.ids[rows]), tuple(labels))
    sure = int((probabilities(network, windows.test_x).max(axis=1) >= 0.9).sum())
    assert started.detail["windows"] == 24
    assert started.detail["pseudo-labels"] == {
        "used": 12,
        "looked-at": 40,
        "right": sure,
        "confident": sure,
    }
    assert started.people == ("ada", "ben")
    assert labels.tolist() == (np.arange(40)[rows] % len(LABELS)).tolist()


def test_off_every_byte_is_that_of_a_device_that_never_had_any(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    told: list[list[bytes]] = []
    for number, had in enumerate((True, False)):
        place = Path(shutil.copytree(state, tmp_path / f"device-{number}"))
        if had:  # a training with some, cut off
            stopped(place, turned, train_message(releases[1]))
        with guessing(place, turned.world(), OFF) as device:
            ask, entries = device.ask, len(device.store.journal.entries())
            told.append(
                [
                    pack_update(ask("train", train_message(releases[1]))),
                    pack_update(ask("train", train_message(releases[2], compression="int8"))),
                    repr(device.store.journal.entries()[entries:]).encode(),
                ]
            )
            assert (device.store.state.get(KEPT) is None) is not had
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("pseudo", "change", "why"),
    [
        (ON, "take back held-out", "no-held-out"),
        (ON, "label all", "no-unlabelled"),
        (ON.model_copy(update={"precision": 0.95}), "", "few-held-out"),
        (ON.model_copy(update={"windows": 8}), "", "few-held-out"),
        (ON, "wrong held-out", "not-precise"),
        (ON, "only faults", "no-unlabelled"),
        (ON, "only noise", "none-confident"),
    ],
)
def test_where_the_network_has_not_shown_that_it_may_none_are_used_and_the_journal_says_why(
    state: Path,
    base: Base,
    turned: Turned,
    releases: list[Release],
    pseudo: PseudoLabels,
    change: str,
    why: str,
) -> None:
    message = train_message(releases[1])
    with guessing(state, turned.world(), pseudo) as device:
        changed(device, change)
        update = device.ask("train", message)
        found = labelled(device.store, base.record)
        assert said(device)["none"] == why
        assert said(device)["used"] == 0
        wanted = Learner(NAME, base, found.windows).answer_plan(message)
        assert pack_update(update) == pack_update(wanted)
        assert device.store.journal.entries()[-1].people == tuple(sorted(found.people))


def changed(device: Device, how: str) -> None:
    labels, database = device.store.labels, device.store.database
    if how == "take back held-out":
        labels.range("ada", 200_000.0, 300_000.0 - 1, None, "ada")
    elif how == "label all":
        labels.range("ben", 0.0, 1e9, LABELS[0], "ben")
    elif how == "wrong held-out":
        labels.range("ada", 200_000.0, 200_079.0, LABELS[3], "ada")
    elif how.startswith("only"):
        device.store.forget("ben")
        assert database.number("SELECT count(*) FROM windows WHERE label IS NULL") == 0
        noise = 1000.0 if how == "only faults" else 0.01
        add(device.store, 20, seed=5, person="cy", labels=False, noise=noise)


def test_windows_that_are_held_out_are_never_labelled(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with guessing(state, turned.world()) as device:
        device.store.forget("ben")
        add(device.store, 20, seed=5, person="cy", side="held-out", labels=False)
        assert device.store.windows.counts()[("held-out", None)] == 20
        device.ask("train", train_message(releases[1]))
        assert said(device)["looked-at"] == 0
        assert said(device)["none"] == "no-unlabelled"


def test_without_a_label_there_is_nothing_to_train_on(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with guessing(state, turned.world()) as device:
        device.store.labels.range("ada", 100_000.0, 199_999.0, None, "ada")
        with pytest.raises(MismatchError, match="no labelled windows"):
            device.ask("train", train_message(releases[1]))
        assert kept_of(device.store) is None


def stopped(state: Path, turned: Turned, message: Payload, **words: Any) -> None:
    """Let an agent end in the middle of a training, with a checkpoint."""
    stopping = threading.Event()
    read = at_look(3, stopping.set)
    world = turned.world(cadence=EVERY_STEP, read=read, stopping=stopping)
    with guessing(state, world, **words) as device:
        with pytest.raises(RoundError) as refused:
            device.ask("train", message)
        assert refused.value.code == "agent-stopping"


@pytest.mark.parametrize(
    ("pseudo", "own"), [(ON, OWN), (ON.model_copy(update={"precision": 0.95}), None)]
)
def test_a_killed_training_goes_on_with_the_same_ones_although_windows_came_meanwhile(
    state: Path,
    turned: Turned,
    releases: list[Release],
    tmp_path: Path,
    own: OwnStatistics | None,
    pseudo: PseudoLabels,
) -> None:
    message = train_message(releases[1])
    place = Path(shutil.copytree(state, tmp_path / "undisturbed"))
    with guessing(place, turned.world(), pseudo, own) as device:
        wanted, before = pack_update(device.ask("train", message)), kept_of(device.store)
    stopped(state, turned, message, pseudo=pseudo, own=own)
    with guessing(state, turned.world(), pseudo, own) as device:
        add(device.store, 60, seed=6, person="cy", labels=False)
        add(device.store, 40, seed=7, person="cy", side="held-out", labels=False)
        assert pack_update(device.ask("train", message)) == wanted
        started = device.store.journal.entries()[-2]
        assert started.detail["from_step"] == 4
        assert kept_of(device.store) == before
        assert before is not None
        assert started.detail["pseudo-labels"] == before.said
        # The next plan has the newest.
        device.ask("train", train_message(releases[2]))
        assert said(device)["looked-at"] == 64


@pytest.mark.parametrize("way", ["off", "damaged", "foreign", "gone", "labelled"])
def test_without_those_that_it_began_with_a_training_begins_again(
    state: Path, turned: Turned, releases: list[Release], way: str
) -> None:
    message = train_message(releases[1])
    stopped(state, turned, message)
    with guessing(state, turned.world(), OFF if way == "off" else ON) as device:
        store, kept = device.store, kept_of(device.store)
        assert kept is not None
        first = kept.ids[0]
        if way == "damaged":
            store.state.put(KEPT, {**store.state.get(KEPT), "ids": ["one"]})
        elif way == "foreign":  # of a class that no base knows, so no labelled window more
            store.labels.window(first, "juggling", "ben")
        elif way == "labelled":
            store.labels.window(first, LABELS[0], "ben")
        elif way == "gone":
            store.database.connection.execute("DELETE FROM windows WHERE id = ?", (first,))
        update = device.ask("train", message)
        started = store.journal.entries()[-2]
        # Found anew they are the same ones, as long as no window came or went.
        assert started.detail["from_step"] == (4 if way == "damaged" else 0)
        again = kept_of(store)
        assert again is not None
        assert (first in again.ids) == (way in ("off", "damaged"))
        assert turned.said("pseudo-labels.dropped") == (
            [{"plan": plan_of(releases[1]).id, "reason": "pseudo-labels-damaged"}]
            if way == "damaged"
            else []
        )
        assert update.config["examples"] == {"off": 24, "labelled": 25 + 12}.get(way, 36)


def test_who_is_forgotten_while_windows_are_labelled_is_in_no_update_and_no_journal(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    with guessing(state, turned.world()) as device:

        def meanwhile(*args: Any, **words: Any) -> Any:
            device.store.forget("ben")
            return guessed(*args, **words)

        monkeypatch.setattr(labelling, "guessed", meanwhile)
        with pytest.raises(RoundError) as caught:
            device.ask("train", train_message(releases[1]))
        assert caught.value.code == "person-forgotten"
        assert device.store.state.get(KEPT) is None
        assert device.store.database.number("SELECT count(*) FROM journal_people") == 0


def test_an_update_with_windows_of_somebody_who_is_forgotten_never_leaves(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    read = at_look(2, lambda: device.store.forget("ben"))
    place = Path(shutil.copytree(state, tmp_path / "during"))
    with guessing(place, turned.world(cadence=EVERY_STEP, read=read)) as device:
        with pytest.raises(RoundError) as refused:
            device.ask("train", train_message(releases[1]))
        assert refused.value.code == "person-forgotten"
        assert device.store.outbox.waiting() == ()
        assert device.store.checkpoints.plan() is None
        assert device.store.state.get(KEPT) is None
    with guessing(state, turned.world()) as device:  # and afterwards: the server's copy is named
        device.ask("train", train_message(releases[1]))
        assert device.store.forget("ben").server_holds == ((plan_of(releases[1]).id, 2),)
        assert device.store.state.get(KEPT) is None


@pytest.mark.parametrize("precision", [0.8, 0.99])
def test_whose_held_out_windows_the_gate_went_by_is_named_also_where_none_are_used(
    state: Path, turned: Turned, releases: list[Release], precision: float
) -> None:
    pseudo, message = ON.model_copy(update={"precision": precision}), train_message(releases[1])
    with guessing(state, turned.world()) as device:
        add(device.store, 1, seed=6, person="finn", side="held-out")
        # The newest of them, as many as are looked at, are cy's but for one of dora's.
        add(device.store, 1, seed=7, person="dora", side="held-out")
        add(device.store, 63, seed=8, person="cy", side="held-out")
    stopped(state, turned, message, pseudo=pseudo)
    with guessing(state, turned.world(), pseudo) as device:
        add(device.store, 64, seed=9, person="eve", side="held-out")
        device.ask("train", message)
        started, finished = device.store.journal.entries()[-2:]
        assert started.detail["from_step"] == 4
        first = device.store.journal.entries()[0]
        assert first.people == started.people
        used = ("ben",) if started.detail["pseudo-labels"]["used"] else ()
        assert bool(used) == (precision == 0.8)
        assert started.people == finished.people == ("ada", *used, "cy", "dora")
        assert device.store.forget("dora").deleted["journal"] >= 2
        assert device.store.outbox.waiting() == ()


def test_where_there_is_nothing_to_label_nobody_is_asked_and_named(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with guessing(state, turned.world()) as device:
        add(device.store, 64, seed=8, person="cy", side="held-out")
        changed(device, "label all")
        device.ask("train", train_message(releases[1]))
        assert said(device)["none"] == "no-unlabelled"
        assert device.store.journal.entries()[-1].people == ("ada", "ben")


def slow(monkeypatch: pytest.MonkeyPatch, turned: Turned, seconds: float) -> list[int]:
    """Let each look at windows take so long; return how many it is of, as it happens."""
    seen: list[int] = []

    def looked(network: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        turned.seconds += seconds
        seen.append(len(x))
        return probabilities(network, x)

    monkeypatch.setattr(labelling, "probabilities", looked)
    return seen


def test_seconds_of_a_search_that_ends_early_count_to_the_days(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, turned, 100.0)
    with guessing(state, turned.world()) as device:
        with pytest.raises(RoundError) as caught:
            device.ask("train", train_message(releases[1], deadline_s=150.0), limit_s=150.0)
        assert caught.value.code == "over-time"
        assert device.store.state.get("training.today")["seconds"] == 200.0


def test_a_search_leaves_half_of_the_days_seconds_to_the_training_which_goes_on_without(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, message = slow(monkeypatch, turned, 60.0), train_message(releases[1])
    with guessing(state, turned.world()) as device:
        base = device.serving.held.base
        windows = labelled(device.store, base.record).windows
        limited = Policy(only_on_mains=False, max_training_s_per_day=100.0, min_new_labels=0)
        device.config[0] = device.config[0].model_copy(update={"policy": limited})
        update = device.ask("train", message)
        assert seen == [32]
        assert said(device)["none"] == "over-budget"
        assert device.store.state.get("training.today")["seconds"] == 60.0
        assert "the day leaves" in line(standing(device.store, device.serving.folder, True))
    wanted = Learner(NAME, base, windows).answer_plan(message)
    assert pack_update(update) == pack_update(wanted)


def test_time_spent_on_them_counts_and_an_end_meanwhile_stops_them(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    def monotonic() -> float:
        turned.seconds += 1.0
        return turned.seconds

    with guessing(state, turned.world(monotonic=monotonic)) as device:
        device.ask("train", train_message(releases[1]))
        spent = float(device.store.state.get("training.today")["seconds"])
        entry = device.store.journal.entries()[-1]
        assert spent > entry.detail["seconds"] + 2
        with pytest.raises(RoundError, match="before the training began") as caught:
            device.ask("train", train_message(releases[2], deadline_s=2.0), limit_s=2.0)
        assert caught.value.code == "over-time"
    world = turned.world()
    world.stopping.set()
    with guessing(state, world) as device:
        with pytest.raises(RoundError, match="before the training began") as caught:
            device.ask("train", train_message(releases[2]))
        assert caught.value.code == "agent-stopping"


def test_they_come_of_the_release_under_own_statistics_and_never_of_a_private_core(
    state: Path, base: Base, turned: Turned, releases: list[Release]
) -> None:
    with guessing(state, turned.world(), own=OWN) as device:
        device.ask("train", train_message(releases[1]))
        kept, footing = kept_of(device.store), device.agent.statistics.taken()
        x = normalisation_of(base.record).apply(unlabelled(device).x)
        ids = unlabelled(device).ids
    assert kept is not None
    assert kept.statistics == footing.digest != ""
    network = footing.bench.served(releases[1].state)
    forward = partial(probabilities, network)
    parts = [forward(x[n : n + BATCH_WINDOWS]) for n in range(0, len(x), BATCH_WINDOWS)]
    rows, _ = choose(np.concatenate(parts), threshold=0.9, per_class=3, total=12)
    assert kept.ids == tuple(ids[rows])
    plain = workbench(base).served(releases[1].state)
    assert not np.allclose(probabilities(plain, x), np.concatenate(parts))


def test_under_other_statistics_than_it_began_with_a_training_finds_them_anew(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    message = train_message(releases[1])
    place = Path(shutil.copytree(state, tmp_path / "without"))
    with guessing(place, turned.world()) as device:
        wanted, plain = pack_update(device.ask("train", message)), kept_of(device.store)
    stopped(state, turned, message, own=OWN)
    with guessing(state, turned.world()) as device:  # the owner turned them off
        under = kept_of(device.store)
        assert pack_update(device.ask("train", message)) == wanted
        now = kept_of(device.store)
    assert now == plain
    assert under is not None
    assert plain is not None
    assert under.statistics != plain.statistics


def test_fisher_information_is_of_labels_that_somebody_gave(
    state: Path, base: Base, turned: Turned, releases: list[Release]
) -> None:
    with guessing(state, turned.world()) as device:
        update = device.ask("train", train_message(releases[1], ewc=1.0))
        windows = labelled(device.store, base.record).windows
        kept = device.store.fishers.get(space_of(plan_of(releases[1])))
    assert kept is not None
    assert kept[1] == {"ada", "ben"}  # their windows led to where it was taken
    delta = CoreState.from_flat(releases[1].state.layout, update.array)
    wanted = fisher_by_hand(base, windows, releases[1].state + delta)
    assert unpack_fisher(kept[0]).digest == wanted.digest


def test_a_network_whose_answers_are_no_numbers_labels_nothing() -> None:
    def forward(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.full((len(x), 4), 0.01)
        found[:, 0] = 0.97
        found[x[:, 0, 0] > 0] = np.nan
        return found

    x = np.zeros((30, CHANNELS, WINDOW), np.float32)
    other = x[:4].copy()
    other[1] = 1.0
    known = np.zeros(30, np.int64)
    words = {"threshold": 0.9, "precision": 0.8, "total": 40}
    found = guessed(forward, x, known, other, **words)  # type: ignore[arg-type]
    assert found.rows.tolist() == [0, 2, 3]
    found = guessed(forward, x + 1, known, other, **words)  # type: ignore[arg-type]
    assert (found.why, found.confident) == ("few-held-out", 0)


def test_what_is_kept_in_another_version_is_as_good_as_none(state: Path) -> None:
    with open_store(state, clock=NOON.timestamp) as store:
        store.state.put(KEPT, {"version": 0})
        assert kept_of(store) is None
