"""A device that moves to another base: one message, and from then on it works on that base alone.

How it is served is in ``serving/test_bases.py``; kills and full disks are in
``test_other_base_cut_off.py``.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients.agent.answering.labelled import labelled
from clients.agent.answering.packing import pack_update
from clients.agent.learner import Learner
from clients.agent.power.readings import Readings
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.recover import recover
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, save_base
from fleet.errors import MismatchError, RoundError
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    NAME,
    Device,
    Turned,
    cut_off_at,
    fill,
    opened,
    release_message,
    train_message,
)
from tests.clients.agent.answering.moving import (
    Move,
    files_of,
    kernels_of,
    later_bases,
    rebase_of,
    set_up_with,
)
from tests.clients.agent.serving.factories import chain_of, make_base, raw_windows

NOTHING = Payload(np.zeros(0, np.float32), {})
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def move(base: Base, releases: list[Release]) -> Move:
    return rebase_of(base, releases[2])


def status_of(device: Device) -> DeviceStatus:
    return DeviceStatus.model_validate(dict(device.ask("query.status", NOTHING).config))


def moved(device: Device, move: Move, release: Release | None = None) -> DeviceStatus:
    """Bring another base's release together with the base; return what the device says then."""
    answer = device.ask("query.release", move.message(release))
    return DeviceStatus.model_validate(dict(answer.config))


def declined(device: Device, kind: str, payload: Payload) -> str:
    with pytest.raises((MismatchError, RoundError)) as why:
        device.ask(kind, payload)
    return why.value.code


def test_a_release_of_another_base_alone_is_declined_and_nothing_is_kept_or_changed(
    state: Path, turned: Turned, move: Move, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        device.ask("query.release", release_message(releases[2]))
        before = files_of(state), status_of(device)
        assert declined(device, "query.release", release_message(move.release)) == "base-missing"
        assert (files_of(state), status_of(device)) == before
        said = turned.said("message.declined")
        assert said == [{"kind": "query.release", "reason": "base-missing"}]


def test_with_the_base_along_the_device_serves_what_the_servers_own_merge_gives(
    device: Device, turned: Turned, state: Path, move: Move, base: Base, releases: list[Release]
) -> None:
    device.ask("query.release", release_message(releases[2]))
    status = moved(device, move)
    assert (status.release, status.serves) == (3, kernels_of(move.base, move.release))
    assert status.train_windows == 24
    assert later_bases(state) == [f"{move.base.digest[:16]}.safetensors"]
    [said] = turned.said("base.changed")
    assert said == {"base": move.base.digest, "before": base.digest}


def test_a_plan_of_the_new_base_trains_as_on_a_device_that_was_set_up_with_it_by_hand(
    device: Device, turned: Turned, move: Move, tmp_path: Path
) -> None:
    moved(device, move)
    plan = train_message(move.later, compression="int8")
    found = device.ask("train", plan)
    with opened(set_up_with(move.base, tmp_path / "hand"), Turned().world()) as other:
        wanted = other.ask("train", plan)
        assert pack_update(found) == pack_update(wanted)
        assert device.serving.served is not None
        assert other.serving.served is not None
        assert device.serving.served.digest == other.serving.served.digest
        bare = Learner(NAME, move.base, labelled(other.store, move.base.record).windows)
    plain = train_message(move.later, seed=3)
    assert device.ask("train", plain).array.tobytes() == bare.answer_plan(plain).array.tobytes()


def test_a_plan_of_the_base_before_is_declined_and_takes_nothing_back(
    device: Device, move: Move, releases: list[Release]
) -> None:
    moved(device, move)
    assert declined(device, "train", train_message(releases[1])) == "wrong-base"
    assert declined(device, "evaluate", release_message(releases[1])) == "wrong-base"
    assert status_of(device).release == 3


def test_a_plan_does_not_take_a_device_to_another_base(device: Device, move: Move) -> None:
    assert declined(device, "train", train_message(move.later)) == "wrong-base"
    assert status_of(device).release == 0


def test_a_plan_that_was_answered_before_the_move_has_the_same_answer_after_it(
    device: Device, move: Move, releases: list[Release]
) -> None:
    first = device.ask("train", train_message(releases[2]))
    moved(device, move)
    assert pack_update(device.ask("train", train_message(releases[2]))) == pack_update(first)


def test_an_evaluation_counts_the_held_out_windows_by_the_base_in_use(
    device: Device, move: Move
) -> None:
    moved(device, move)
    windows = labelled(device.store, move.base.record).windows
    wanted = Learner(NAME, move.base, windows).evaluate(move.later.state)
    found = device.ask("evaluate", release_message(move.later))
    assert found.values["num-examples"] == 12 == wanted.sum()
    device.set_policy(share_class_counts=True)
    shared = device.ask("evaluate", release_message(move.later))
    assert shared.values["confusion"] == wanted.ravel().tolist()


def test_back_and_forward_again_no_file_is_asked_for_and_the_digests_are_those_of_before(
    device: Device, move: Move, releases: list[Release], base: Base
) -> None:
    device.ask("query.release", release_message(releases[2]))
    moved(device, move)
    device.ask("query.release", release_message(move.later))
    for release, on in (
        (releases[2], base),
        (move.later, move.base),
        (releases[0], base),
        (move.release, move.base),
    ):
        status = device.ask("query.release", release_message(release)).config
        assert (status["release"], status["serves"]) == (release.number, kernels_of(on, release))
        assert device.ask("evaluate", release_message(release)).values["num-examples"] == 12


def test_who_reads_the_model_follows_without_a_restart(
    device: Device, state: Path, move: Move, releases: list[Release]
) -> None:
    device.ask("query.release", release_message(releases[2]))
    model, x = DeviceModel(state, retry_s=0), raw_windows(8)
    before = model.predict(x)[1]
    moved(device, move)
    np.testing.assert_allclose(model.predict(x)[1], before, atol=1e-4)
    assert (model.served.number, model.problem) == (3, "")


def test_a_swap_by_another_process_is_followed_by_the_next_piece_of_work(
    device: Device, state: Path, turned: Turned, base: Base, move: Move, releases: list[Release]
) -> None:
    moved(device, move)
    serving = Serving(state)
    assert serving.promote(serving.held.kept(0)).swapped
    device.ask("train", train_message(releases[1]))
    serving.promote(serving.held.kept(3))
    with device.agent.aside() as free:
        assert free
    changes = [said["base"] for said in turned.said("base.changed")]
    assert changes == [move.base.digest, base.digest, move.base.digest]
    assert declined(device, "train", train_message(releases[1], seed=9)) == "wrong-base"


@pytest.mark.parametrize("at", ["brought", "trained", "back"])
def test_a_device_that_starts_again_goes_on_on_the_base_in_use(
    state: Path, turned: Turned, move: Move, releases: list[Release], at: str
) -> None:
    with opened(state, turned.world()) as device:
        moved(device, move)
        if at == "trained":
            device.ask("train", train_message(move.later))
        if at == "back":
            device.ask("query.release", release_message(releases[2]))
    before = Serving(state).served
    recovery = recover(Serving(state))
    assert (recovery.source, recovery.served) == ("current", before)
    with opened(state, turned.world()) as device:
        turned.events.clear()
        own, other = (move.later, releases[1]) if at != "back" else (releases[1], move.later)
        assert declined(device, "train", train_message(other)) == "wrong-base"
        assert device.ask("train", train_message(own)).config["examples"] == 24
        assert turned.said("base.changed") == []
        assert later_bases(state) == [f"{move.base.digest[:16]}.safetensors"]


def test_a_move_that_was_cut_off_is_finished_at_the_next_start(
    state: Path, turned: Turned, move: Move, base: Base
) -> None:
    with opened(state, turned.world()) as device:
        device.serving.held.bases.try_on(move.base)
        cut_off_at(device, move.release)
    with opened(state, turned.world()) as device:
        assert status_of(device).release == 0
        device.agent.finish()
        assert status_of(device).serves == kernels_of(move.base, move.release)
        assert device.ask("train", train_message(move.later)).config["base"] == move.base.digest


def test_what_is_wanted_of_a_base_that_is_gone_is_settled_and_asked_for_anew(
    state: Path, turned: Turned, move: Move
) -> None:
    with opened(state, turned.world()) as device:
        device.serving.held.bases.try_on(move.base)
        cut_off_at(device, move.release)
    Serving(state).folder.base_file(move.base.digest).unlink()
    with opened(state, turned.world()) as device:
        device.agent.finish()
        assert turned.said("release.kept")[-1]["reason"] == "base-missing"
        assert device.agent.releases.finish() is None
        assert declined(device, "query.release", release_message(move.release)) == "base-missing"
        assert moved(device, move).release == 3


def test_a_probe_that_falls_leaves_the_device_on_its_base_and_a_way_forward(
    state: Path, turned: Turned, base: Base, releases: list[Release]
) -> None:
    worse = make_base(seed=5)
    first = replace(chain_of(worse, 1)[1], number=3)
    other = Move(worse, first)
    fill(state, train=0, held_out=40, person="ben")
    labels, _ = DeviceModel(state).predict(raw_windows(40, 2))
    with opened(state, turned.world()) as device:
        for number, label in enumerate(labels):
            at = 200_000 + 10.0 * number
            device.store.labels.range("ben", at, at + 1, label, "ben")
        assert declined(device, "query.release", other.message()) == "probe-fell"
        assert (status_of(device).release, turned.said("base.changed")) == (0, [])
        assert device.ask("train", train_message(releases[0])).config["base"] == base.digest


def test_who_asks_while_the_device_moves_is_told_not_now(
    state: Path, turned: Turned, move: Move, releases: list[Release]
) -> None:
    working, go_on = threading.Event(), threading.Event()

    def read() -> Readings:
        working.set()
        assert go_on.wait(DEADLINE_S)
        return Readings()

    with opened(state, turned.world(read=read)) as device:
        training = threading.Thread(
            target=lambda: device.ask("train", train_message(releases[1])), daemon=True
        )
        training.start()
        assert working.wait(DEADLINE_S)
        assert declined(device, "query.release", move.message()) == "agent-busy"
        assert later_bases(state) == []
        go_on.set()
        training.join(DEADLINE_S)
        assert moved(device, move).release == 3


def test_a_device_follows_the_fleet_from_base_to_base_and_back(
    device: Device, move: Move, base: Base, releases: list[Release]
) -> None:
    moved(device, move)
    second = rebase_of(move.base, move.later)
    assert moved(device, second).serves == kernels_of(second.base, second.release)
    update = device.ask("train", train_message(second.later))
    assert (update.config["base"], second.later.number) == (second.base.digest, 6)
    for release, on in ((move.later, move.base), (releases[1], base), (second.later, second.base)):
        status = device.ask("query.release", release_message(release)).config
        assert status["serves"] == kernels_of(on, release)
        assert status["train_windows"] == 24


def test_a_base_that_is_damaged_when_the_device_starts_is_asked_for_and_taken_again(
    state: Path, turned: Turned, move: Move, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        device.ask("query.release", release_message(releases[2]))
        moved(device, move)
    Serving(state).folder.base_file(move.base.digest).write_bytes(move.content[:-1])
    assert recover(Serving(state)).source == "last-good"
    with opened(state, turned.world()) as device:
        assert device.ask("train", train_message(releases[2])).config["examples"] == 24
        assert declined(device, "query.release", release_message(move.release)) == "base-missing"
        assert moved(device, move).serves == kernels_of(move.base, move.release)
    assert recover(Serving(state)).source == "current"


def test_a_base_that_waits_for_its_release_takes_the_place_of_none_in_use(
    device: Device, state: Path, move: Move, releases: list[Release], tmp_path: Path
) -> None:
    moved(device, move)
    second = rebase_of(move.base, move.later)
    save_base(second.base, tmp_path / "second.safetensors")
    assert Serving(state).add_base(tmp_path / "second.safetensors")
    both = sorted(f"{one.base.digest[:16]}.safetensors" for one in (move, second))
    for release in (move.later, releases[2], move.release, second.release):
        device.ask("query.release", release_message(release))
        assert later_bases(state) == both


def test_a_device_whose_first_base_is_damaged_works_on_on_the_later_one(
    state: Path, turned: Turned, move: Move, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        moved(device, move)
    Serving(state).folder.base.write_bytes(b"no base")
    assert recover(Serving(state)).source == "current"
    with opened(state, turned.world()) as device:
        assert device.ask("train", train_message(move.later)).config["examples"] == 24
        with pytest.raises(MismatchError) as why:
            device.ask("query.release", release_message(releases[2]))
        assert why.value.code == "base-missing"
        assert status_of(device).release == move.later.number
