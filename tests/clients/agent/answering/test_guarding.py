"""Laws of the guards that a plan asks for, and of what a device keeps for them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.agent import guarding
from clients.agent.answering.between import GUARD_ARRAYS, Guarding, space_of
from clients.agent.answering.labelled import labelled
from clients.agent.answering.packing import pack_fisher, pack_update, unpack_fisher
from clients.agent.answering.world import Cadence
from clients.agent.continual_labels import logits_of
from clients.agent.guarding import guards_for
from clients.agent.learner import Learner, Windows, workbench
from clients.agent.private.removing import forget
from fleet.adapt.attach import make_frames, single_thread
from fleet.adapt.base import Base, BaseRecord
from fleet.adapt.fold import fold
from fleet.adapt.lean.memory import dynamic_peak
from fleet.adapt.lean.plan import accumulate
from fleet.adapt.state import CoreState
from fleet.continual.guards import Distil, joined_fisher
from fleet.errors import FleetError, RoundError, StorageError
from fleet.federate.releases import Release
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from server import coordinator as c
from server.standing.planning import begun
from server.standing.policy import FleetPolicy
from tests.clients.agent.answering.devices import (
    NAME,
    Device,
    Turned,
    at_look,
    fill,
    opened,
    plan_of,
    train_message,
)
from tests.clients.agent.answering.guarded import answered_by_hand, fisher_by_hand
from tests.server.coordinating import take

EVERY_STEP = Cadence(checkpoint_s=0.0, look_s=0.0, busy_s=0.05)
ALL = {"anchor": 0.3, "ewc": 2.0, "distil": 0.7}


def windows_in(device: Device, base: Base) -> Windows:
    return labelled(device.store, base.record).windows


def kept(device: Device, release: Release) -> CoreState | None:
    found = device.store.fishers.get(space_of(plan_of(release)))
    return None if found is None else unpack_fisher(found[0])


@pytest.mark.parametrize("asked", [{"anchor": 0.3}, {"distil": 0.7}, {"ewc": 2.0}, ALL])
def test_a_guarded_update_is_the_learners_own_with_the_same_guards_by_hand(
    device: Device, base: Base, releases: list[Release], asked: dict[str, float]
) -> None:
    windows, fisher = windows_in(device, base), None
    for number in (1, 2):
        message = train_message(releases[number], **asked)
        update = device.ask("train", message)
        wanted, after = answered_by_hand(base, windows, message, fisher)
        assert pack_update(update) == pack_update(wanted)
        if "ewc" in asked:
            fisher = joined_fisher(fisher, fisher_by_hand(base, windows, after), 0.9)
            found = kept(device, releases[1])
            assert found is not None
            assert found.digest == fisher.digest
        else:
            assert kept(device, releases[1]) is None
        plain = Learner(NAME, base, windows).answer_plan(train_message(releases[number]))
        # The first time nobody knows which entries matter.
        unguarded = asked == {"ewc": 2.0} and number == 1
        assert (update.array.tobytes() == plain.array.tobytes()) == unguarded


def test_a_plan_without_guards_has_the_bytes_and_journal_of_a_device_that_never_had_any(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    told: list[list[bytes]] = []
    for number, had in enumerate((True, False)):
        place = Path(shutil.copytree(state, tmp_path / f"device-{number}"))
        with opened(place, turned.world()) as device:
            device.ask("train", train_message(releases[1], **(ALL if had else {"anchor": 0.0})))
            before = device.store.fishers.get(space_of(plan_of(releases[1])))
            assert (before is not None) == had
            device.store.database.connection.execute("UPDATE fishers SET crc = crc + 1")
            entries = len(device.store.journal.entries())
            told.append(
                [
                    pack_update(device.ask("train", train_message(releases[2]))),
                    repr(device.store.journal.entries()[entries:]).encode(),
                ]
            )
            device.store.database.connection.execute("UPDATE fishers SET crc = crc - 1")
            assert device.store.fishers.get(space_of(plan_of(releases[1]))) == before
    assert told[0] == told[1]
    assert turned.said("training.fisher-dropped") == []
    assert b"pseudo" not in told[0][1]


def test_a_guarded_training_that_was_stopped_goes_on_to_the_same_update_and_information(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    message = train_message(releases[2], optimiser="adam", compression="int8", **ALL)
    ends = []
    for number, cut in enumerate((False, True)):
        place = Path(shutil.copytree(state, tmp_path / f"device-{number}"))
        with opened(place, turned.world()) as device:
            device.ask("train", train_message(releases[1], ewc=1.0))
        if cut:
            stopped(place, turned, message)
        with opened(place, turned.world()) as device:
            update = pack_update(device.ask("train", message))
            assert device.store.journal.entries()[-2].detail["from_step"] == (4 if cut else 0)
            ends.append((update, device.store.fishers.get(space_of(plan_of(releases[1])))))
    assert ends[0] == ends[1]
    assert ends[0][1] is not None


def stopped(state: Path, turned: Turned, message: Any) -> None:
    """Let an agent end in the middle of a training, with a checkpoint."""
    stopping = threading.Event()
    read = at_look(3, stopping.set)
    world = turned.world(cadence=EVERY_STEP, read=read, stopping=stopping)
    with opened(state, world) as device:
        with pytest.raises(RoundError) as refused:
            device.ask("train", message)
        assert refused.value.code == "agent-stopping"


def test_under_other_information_than_it_began_with_a_training_begins_again(
    state: Path, turned: Turned, base: Base, releases: list[Release]
) -> None:
    message = train_message(releases[2], **ALL)
    with opened(state, turned.world()) as device:
        device.ask("train", train_message(releases[1], ewc=1.0))
    stopped(state, turned, message)
    with opened(state, turned.world()) as device:
        device.store.fishers.clear()
        update = device.ask("train", message)
        assert device.store.journal.entries()[-2].detail["from_step"] == 0
        wanted, _ = answered_by_hand(base, windows_in(device, base), message, None)
        assert pack_update(update) == pack_update(wanted)


@pytest.mark.parametrize("how", ["bytes", "negative", "layout"])
def test_information_that_is_damaged_is_dropped_and_said_and_made_anew(
    device: Device, turned: Turned, base: Base, releases: list[Release], how: str
) -> None:
    device.ask("train", train_message(releases[1], ewc=1.0))
    before, space = kept(device, releases[1]), space_of(plan_of(releases[1]))
    assert before is not None
    if how == "bytes":
        device.store.database.connection.execute("UPDATE fishers SET payload = x'00'")
    else:
        arrays = {name: np.array(array) for name, array in before.arrays.items()}
        name = sorted(arrays)[0]
        arrays[name].flat[0] = -1.0
        if how == "layout":
            arrays = {"other": np.zeros(3, np.float32)}
        device.store.fishers.put(space, pack_fisher(CoreState.of(arrays)), ["ada"])
    message = train_message(releases[2], **ALL)
    update = device.ask("train", message)
    assert turned.said("training.fisher-dropped") == [
        {"plan": plan_of(releases[2], **ALL).id, "reason": "fisher-damaged"}
    ]
    wanted, after = answered_by_hand(base, windows_in(device, base), message, None)
    assert pack_update(update) == pack_update(wanted)
    found = kept(device, releases[1])
    assert found is not None
    assert found.digest == fisher_by_hand(base, windows_in(device, base), after).digest


def test_an_update_that_cannot_be_kept_leaves_the_information_before(
    device: Device, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    device.ask("train", train_message(releases[1], ewc=1.0))
    before = device.store.fishers.get(space_of(plan_of(releases[1])))

    def full(*_: object) -> None:
        raise StorageError("disk-full", "no space left")

    monkeypatch.setattr(device.store.state, "put", full)  # the transaction's last statements
    with pytest.raises(StorageError):
        device.ask("train", train_message(releases[1], round=3, ewc=1.0))
    monkeypatch.undo()
    assert [one.event for one in device.store.journal.entries()][2:] == ["started", "refused"]
    assert device.store.fishers.get(space_of(plan_of(releases[1]))) == before
    assert device.store.outbox.get(plan_of(releases[1], round=3, ewc=1.0).id) is None


def test_it_goes_with_whoever_was_in_it_and_with_nobody_else(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    space = space_of(plan_of(releases[1]))
    with opened(state, turned.world()) as device:
        device.ask("train", train_message(releases[1], ewc=1.0))
    fill(state, train=8, person="ben")
    with opened(state, turned.world()) as device:
        store = device.store
        assert forget(state, store, "ben").deleted["fisher information"] == 0
        assert store.fishers.get(space) is not None
    fill(state, train=8, person="cy")
    with opened(state, turned.world()) as device:
        store = device.store
        device.ask("train", train_message(releases[2], ewc=1.0))
        found = store.fishers.get(space)
        assert found is not None
        assert found[1] == {"ada", "cy"}
        # No window of ada's is left; the update that her windows still shape names her.
        with store.transaction() as connection:
            connection.execute("DELETE FROM windows WHERE person = 'ada'")
        device.ask("train", train_message(releases[3], ewc=1.0))
        assert store.journal.entries()[-1].people == ("ada", "cy")
        done = forget(state, store, "ada")
        assert done.deleted["fisher information"] == 1
        assert len(done.server_holds) == 3
        assert store.fishers.get(space) is None
        device.ask("train", train_message(releases[3], ewc=1.0, seed=1))
        found = store.fishers.get(space)
        assert found is not None
        assert found[1] == {"cy"}


def test_who_is_forgotten_during_a_training_under_it_is_in_no_update(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        device.ask("train", train_message(releases[1], ewc=1.0))
    read = at_look(2, lambda: forget(state, device.store, "ada"))
    world = turned.world(read=read, cadence=EVERY_STEP)
    with opened(state, world, min_new_labels=0) as device:
        with pytest.raises(RoundError) as refused:
            device.ask("train", train_message(releases[2], ewc=1.0))
        assert refused.value.code == "person-forgotten"
        assert device.store.fishers.get(space_of(plan_of(releases[1]))) is None
        assert device.store.checkpoints.plan() is None


def test_numbers_that_are_not_finite_are_kept_from_no_training(
    device: Device, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    device.ask("train", train_message(releases[1], ewc=1.0))
    before = device.store.fishers.get(space_of(plan_of(releases[1])))
    broken = CoreState.of(
        {name: np.full(shape, np.nan, np.float32) for name, shape in layout_entries(releases[1])}
    )
    monkeypatch.setattr("clients.agent.answering.between.weighed", lambda *_, **__: broken)
    device.ask("train", train_message(releases[2], ewc=1.0))
    assert device.store.fishers.get(space_of(plan_of(releases[1]))) == before


def layout_entries(release: Release) -> list[tuple[str, tuple[int, ...]]]:
    return list(release.state.layout.entries)


def test_a_memory_budget_holds_with_the_second_pass(base: Base, releases: list[Release]) -> None:
    random = np.random.default_rng(3)
    about = base.record.model
    x = random.normal(size=(16, about.channels, about.window)).astype(np.float32)
    windows = Windows(x, np.arange(16) % 4, x[:0], np.zeros(0, np.int64))
    plan, state = plan_of(releases[1], batch=16, **ALL), releases[1].state
    bench, size = workbench(base), releases[1].state.layout.size
    alone = bench.memory_plan("core", 16, torch.from_numpy(x[0]), 2**40)
    assert alone is not None
    limit = alone.peak_bytes * 2 // 3
    budget = Guarding(plan, state).budget(limit, size)
    learner = Learner(NAME, base, windows, memory_budget_bytes=budget, bench=bench)
    cut = learner.memory_plan("core", 16)
    assert cut is not None
    assert cut.parts > 1

    def step(guarded: bool) -> None:
        attached = bench.attach("core", state, torch.float32)
        tensors = torch.from_numpy(x), torch.from_numpy(windows.train_y)

        def run() -> None:
            guards = guards_for(plan, learner, plan, state, state) if guarded else []
            for parameter in attached.parameters.values():
                parameter.grad = None
            accumulate(attached.module, *tensors, cut.windows if cut else 16)
            for guard in guards:
                guard.add_gradient(attached, tensors[0], np.arange(16))

        with single_thread():
            peaks.append(dynamic_peak(run))

    peaks: list[int] = []
    step(False)
    step(True)
    assert peaks[1] <= peaks[0] + GUARD_ARRAYS * 4 * size
    assert peaks[1] <= limit < alone.peak_bytes


def test_a_memory_budget_holds_with_a_release_that_is_denser_than_what_is_trained() -> None:
    model = ModelConfig(name="small-cnn", channels=6, classes=6, window=128)
    raw = build(model, seed=0).eval()
    record = BaseRecord(
        model=model,
        labels=tuple("abcdef"),
        channels=tuple((f"c{n}", "g") for n in range(6)),
        rate_hz=50.0,
        window=128,
        stride=64,
        mean=(0.0,) * 6,
        std=(1.0,) * 6,
        rank=2,
    )
    arrays = {name: tensor.numpy().copy() for name, tensor in raw.state_dict().items()}
    wide = Base(record, arrays, make_frames(fold(raw), "svd", 2))
    bench, limit = workbench(wide), 16_000_000
    release = CoreState.zero(bench.layout("core"))
    plan = plan_of(Release(0, wide.digest, wide.frame_digest, "core", 2, release), batch=256, **ALL)
    x = np.random.default_rng(3).normal(size=(256, 6, 128)).astype(np.float32)
    windows = Windows(x, np.arange(256) % 6, x[:0], np.zeros(0, np.int64))
    budget = Guarding(plan).budget(limit, release.layout.size)
    learner = Learner(NAME, wide, windows, memory_budget_bytes=budget, bench=bench)
    cut = learner.memory_plan("core", 256)
    assert cut is not None
    assert cut.windows == 256
    attached, tensor = bench.attach("core", release, torch.float32), torch.from_numpy(x)
    bench.served(release)  # whole kernels are no part of a step's budget

    def step() -> None:
        for parameter in attached.parameters.values():
            parameter.grad = None
        for guard in guards_for(plan, learner, plan, release, None):
            guard.add_gradient(attached, tensor, np.arange(256))

    with single_thread():
        assert dynamic_peak(step) <= limit


def asked_of_the_release(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many windows distillation asks the release of at once, as it happens."""
    seen: list[int] = []

    def counted(network: Any, x: torch.Tensor, **words: Any) -> torch.Tensor:
        seen.append(len(x))
        return logits_of(network, x, **words)

    monkeypatch.setattr(guarding, "logits_of", counted)
    return seen


def test_distillation_asks_the_release_in_each_step_so_it_stops_where_a_training_does(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, message = asked_of_the_release(monkeypatch), train_message(releases[1], distil=1.0)
    with opened(state, turned.world()) as device:
        device.ask("train", train_message(releases[1], distil=1.0, max_steps=1, batch=2))
        assert seen == [2]
    seen.clear()
    stopped(state, turned, message)
    assert seen == [8, 8, 8, 8]
    seen.clear()
    with opened(state, turned.world()) as device:
        device.ask("train", message)
        assert device.store.journal.entries()[-2].detail["from_step"] == 4
        assert sum(seen) == 2 * len(windows_in(device, device.serving.held.base).train_y) - 32


def test_a_simulation_asks_the_release_once_of_all_windows(
    device: Device, base: Base, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, windows = asked_of_the_release(monkeypatch), windows_in(device, base)
    plan, state = plan_of(releases[1], distil=1.0), releases[1].state
    learner = Learner(NAME, base, windows)
    (guard,) = guards_for(plan, learner, plan, state, None, beforehand=True)
    assert seen == [len(windows.train_y)]
    assert isinstance(guard, Distil)
    x = torch.from_numpy(windows.train_x)
    assert isinstance(guard.teacher, torch.Tensor)
    assert torch.equal(guard.teacher, logits_of(learner.bench.served(state), x))


def test_a_budget_is_as_before_without_guards_and_never_none_with_them(
    device: Device, releases: list[Release]
) -> None:
    plain, guarded = Guarding(plan_of(releases[1])), Guarding(plan_of(releases[1], **ALL))
    assert (plain.budget(0, 10), plain.budget(99, 10)) == (0, 99)
    assert (guarded.budget(0, 10), guarded.budget(99, 10)) == (0, 1)
    assert guarded.budget(1000, 10) == 1000 - GUARD_ARRAYS * 40
    with pytest.raises(FleetError) as caught:
        device.ask("train", train_message(releases[1], memory_budget=1000, **ALL))
    assert caught.value.code == "memory-budget-too-small"


def test_what_a_policy_asks_for_arrives_in_the_training(
    device: Device, base: Base, releases: list[Release]
) -> None:
    values: dict[str, Any] = {"base": base.digest, "rank": 2, "batch": 8, "epochs": 2}
    plans = {}
    for name, asked in (("without", {}), ("with", ALL)):
        policy = FleetPolicy.parse({**values, **asked})
        state = begun(policy, releases[1], 2, 2, rank=2)
        plan = take(state, c.Fleet(0.0, (NAME, "cellar-1")), c.Pushed(0.0))[0].plan
        assert plan is not None
        plans[name] = plan
    assert plans["without"].id == plan_of(releases[1], round=2).id
    assert {name: getattr(plans["with"], name) for name in ALL} == ALL
    message = train_message(releases[1], **ALL)
    assert plans["with"].id == plan_of(releases[1], round=2, **ALL).id
    update = device.ask("train", message)
    wanted, _ = answered_by_hand(base, windows_in(device, base), message)
    assert pack_update(update) == pack_update(wanted)
