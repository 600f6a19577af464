from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clients.agent.continual import DeviceMemory, Labelled
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


def found_by(
    training: PrivateTraining, method: str = "core+head", rate: float = 0.05
) -> list[PrivateCore]:
    bench = Workbench(make_base())
    release = state_of(bench.base, method)
    plan = plan_of(bench, release, method, rate)
    return training.train(bench, plan, release, works_of(bench, plan, release))


def assert_same(got: list[PrivateCore], wanted: list[PrivateCore], tolerance: float) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
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
    assert (found[0].core - without[0].core).norm > 0.01 * wanted[0].core.norm


def test_a_method_that_trains_whole_kernels_goes_one_by_one() -> None:
    for one, other in zip(
        found_by(Together(), "full", 0.01), found_by(OneByOne(), "full", 0.01), strict=True
    ):
        assert one.core.digest == other.core.digest


def test_a_network_that_is_kept_serves_the_next_release_too() -> None:
    bench, together = Workbench(make_base()), Together()
    for seed in (1, 2):
        release = state_of(bench.base, seed=seed)
        plan = plan_of(bench, release, "core+head", 0.05)
        works = works_of(bench, plan, release)
        found, wanted = (t.train(bench, plan, release, works) for t in (together, OneByOne()))
        assert_same(found, wanted, 1e-4)


def test_a_training_that_diverges_ends_the_run_as_it_does_one_by_one() -> None:
    errors = []
    for training in (Together(), OneByOne()):
        with pytest.raises(RoundError) as caught:
            found_by(training, rate=100.0)
        errors.append((caught.value.code, str(caught.value)))
    assert errors[0] == errors[1]


def test_training_and_check_windows_are_apart_and_bounded() -> None:
    bench = Workbench(make_base())
    release = state_of(bench.base)
    for work in works_of(bench, plan_of(bench, release, "core+head", 0.05), release):
        assert not set(work.training.ids) & set(work.check.ids)
        assert 0 < len(work.training) <= OPTIONS.personal_windows
        visits = np.concatenate(work.order)
        assert sorted(visits) == sorted(list(range(len(work.training))) * OPTIONS.personal_epochs)
