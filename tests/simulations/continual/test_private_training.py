from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clients.agent.continual import ContinualDevice, DeviceMemory, Labelled
from clients.agent.continual_private import PrivateCore, PrivateWork, private_work
from clients.agent.learner import Workbench
from fleet.adapt.state import CoreState
from fleet.continual.calibration import calibrated, calibration_of, neutral
from fleet.continual.options import ContinualOptions
from fleet.continual.replay import Replay
from fleet.errors import RoundError
from fleet.federate.records import Plan
from simulations.continual.private import OneByOne, PrivateTraining, Together
from tests.fleet.continual.bases import make_base, state_of, windows_of

OPTIONS = ContinualOptions.parse(
    {"personal": True, "personal_windows": 20, "personal_anchor": 0.5, "replay_bytes": 4096}
)
SIZES = (4, 13, 30)

Found = list[PrivateCore | RoundError]


def plan_of(bench: Workbench, release: CoreState, method: str, rate: float) -> Plan:
    return Plan(
        round=3,
        base=bench.base.digest,
        frame=bench.base.frame_digest,
        layout=release.layout.digest,
        release=2,
        state=release.digest,
        method=method,
        rank=2,
        epochs=1,
        batch=8,
        optimiser="sgd",
        learning_rate=rate,
        momentum=0.9,
        seed=0,
        weight_cap=64,
        deadline_s=1.0,
    )


def labelled(count: int, first: int) -> Labelled:
    ids = np.arange(first, first + count, dtype=np.int64)
    return Labelled(windows_of(count, seed=first), ids % 4, ids)


def works_of(bench: Workbench, plan: Plan, release: CoreState) -> list[PrivateWork]:
    """Of devices with and without a core so far, and with a buffer."""
    works = []
    for number, count in enumerate(SIZES):
        kept = labelled(10, 1000 * number + 500)
        replay, _ = Replay.empty(20_000).add(kept.x, kept.y, kept.ids.tolist(), 1)
        before = state_of(make_base(), plan.method, seed=number + 5).scale(0.5) if number else None
        memory = DeviceMemory(replay if number else Replay.empty(0), before)
        work = private_work(
            *(bench, plan, OPTIONS, memory),
            labelled(count, 1000 * number),
            device=f"device-{number}",
            seed=0,
        )
        assert work is not None
        works.append(work)
    return works


def found_by(training: PrivateTraining, method: str = "core+head", rate: float = 0.05) -> Found:
    bench = Workbench(make_base())
    release = state_of(bench.base, method)
    plan = plan_of(bench, release, method, rate)
    return training.train(bench, plan, release, works_of(bench, plan, release))


def cores_in(found: Found) -> list[PrivateCore]:
    cores = [one for one in found if isinstance(one, PrivateCore)]
    assert len(cores) == len(found)
    return cores


def assert_same(got: Found, wanted: Found, tolerance: float) -> None:
    assert len(got) == len(wanted) > 0
    for one, other in zip(cores_in(got), cores_in(wanted), strict=True):
        assert other.core.norm > 0.1
        assert (one.core - other.core).norm <= tolerance * other.core.norm
        assert one.helps is other.helps


@pytest.mark.parametrize("method", ["core+head", "core"])
def test_private_cores_trained_together_are_those_trained_one_by_one(method: str) -> None:
    assert_same(found_by(Together(), method), found_by(OneByOne(), method), 1e-4)


def test_devices_with_statistics_of_their_own_train_together_as_they_do_one_by_one() -> None:
    base = make_base()
    bench = Workbench(base)
    shared = Workbench(base, calibrated(bench.network, neutral(base)), neutral(base).maps)
    release = state_of(base)
    plan = plan_of(bench, release, "core+head", 0.05)
    works = works_of(bench, plan, release)
    for number in (0, 2):
        own = calibration_of(base, windows_of(30, seed=number))
        mine = Workbench(base, calibrated(bench.network, own), own.maps)
        works[number] = replace(works[number], bench=mine)
    plain = works_of(bench, plan, release)
    found, wanted, without = (
        training.train(shared, plan, release, given)
        for training, given in ((Together(), works), (OneByOne(), works), (Together(), plain))
    )
    assert_same(found, wanted, 1e-4)
    assert (cores_in(found)[0].core - cores_in(without)[0].core).norm > 0.01


def test_a_method_that_trains_whole_kernels_goes_one_by_one() -> None:
    found = (cores_in(found_by(one, "full", 0.01)) for one in (Together(), OneByOne()))
    for one, other in zip(*found, strict=True):
        assert one.core.digest == other.core.digest


def test_a_network_that_is_kept_serves_the_next_release_too() -> None:
    bench, together = Workbench(make_base()), Together()
    for seed in (1, 2):
        release = state_of(bench.base, seed=seed)
        plan = plan_of(bench, release, "core+head", 0.05)
        works = works_of(bench, plan, release)
        found, wanted = (t.train(bench, plan, release, works) for t in (together, OneByOne()))
        assert_same(found, wanted, 1e-4)


def test_a_training_that_diverges_is_its_devices_own_affair() -> None:
    bench = Workbench(make_base())
    release = state_of(bench.base)
    plan = plan_of(bench, release, "core+head", 0.05)
    works = works_of(bench, plan, release)
    x = works[1].training.x.copy()
    x[:] = 1e30
    works[1] = replace(works[1], training=replace(works[1].training, x=x))
    found, wanted = (
        training.train(bench, plan, release, works) for training in (Together(), OneByOne())
    )
    for errors in (found, wanted):
        error = errors.pop(1)
        assert isinstance(error, RoundError)
        assert error.code == "training-diverged"
    assert_same(found, wanted, 1e-4)


def test_a_device_whose_training_diverges_keeps_the_core_it_had() -> None:
    bench = Workbench(make_base())
    release = state_of(bench.base)
    before = state_of(bench.base, seed=5).scale(0.5)
    memory = DeviceMemory(Replay.empty(0), before)
    device = ContinualDevice("a", bench, OPTIONS, memory, 0)
    device.follow(plan_of(bench, release, "core+head", 100.0), release, labelled(30, 0))
    assert device.memory.personal is before
    device.follow(plan_of(bench, release, "core+head", 0.05), release, labelled(30, 0))
    assert device.memory.personal is not before


def test_training_and_check_windows_are_apart_and_bounded() -> None:
    bench = Workbench(make_base())
    release = state_of(bench.base)
    for work in works_of(bench, plan_of(bench, release, "core+head", 0.05), release):
        assert not set(work.training.ids) & set(work.check.ids)
        assert 0 < len(work.training) <= OPTIONS.personal_windows
        visits = np.concatenate(work.order)
        assert sorted(visits) == sorted(list(range(len(work.training))) * OPTIONS.personal_epochs)
