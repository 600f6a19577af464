"""Devices with batch-norm statistics, and pulls, of their own train together as they do alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from clients.agent.learner import Workbench
from fleet.adapt.attach import attach
from fleet.adapt.base import Base
from fleet.adapt.cohort.network import CohortNetwork, attach_cohort
from fleet.adapt.cohort.train import Outcome, losses_of, train_cohort
from fleet.adapt.cohort.work import DeviceWork
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.adapt.train import batches, train
from fleet.continual.calibration import calibrated, calibration_of, neutral
from fleet.continual.guards import Anchor
from fleet.errors import MismatchError
from fleet.seeds import generator
from tests.fleet.adapt.cohort.fleets import assert_alike
from tests.fleet.continual.bases import make_base, state_of, windows_of

SIZES = (5, 12, 17)


def benches_of(base: Base) -> list[Workbench]:
    """Of a device without statistics of its own, and of two with them."""
    found = [Workbench(base)]
    for seed in (1, 2):
        own = calibration_of(base, (seed * windows_of(20, seed=seed)).astype(np.float32))
        found.append(Workbench(base, calibrated(folded_network(base), own), own.maps))
    return found


def cohort_of(base: Base, state: CoreState) -> CohortNetwork:
    network = calibrated(folded_network(base), neutral(base))
    return attach_cohort(network, base.frames, state, len(SIZES), dtype=torch.float64)


def works_of(benches: list[Workbench], pulls: bool = False) -> list[DeviceWork]:
    works = []
    for seed, (bench, count) in enumerate(zip(benches, SIZES, strict=True)):
        order = batches(count, batch=8, epochs=2, generator=generator(0, 1, str(seed), "batches"))
        random = np.random.default_rng(seed)
        labels = torch.from_numpy(random.integers(0, 4, count))
        layout = bench.layout("core+head")
        weights = random.uniform(0, 2, layout.size).astype(np.float32)
        works.append(
            DeviceWork(
                torch.from_numpy(windows_of(count, seed=10 + seed)),
                labels,
                tuple(order),
                maps=bench.maps,
                pulls=CoreState.from_flat(layout, weights) if pulls and seed else None,
            )
        )
    return works


def alone(
    benches: list[Workbench], works: list[DeviceWork], state: CoreState, rate: float
) -> list[Outcome]:
    found: list[Outcome] = []
    for bench, work in zip(benches, works, strict=True):
        attached = attach(bench.network, bench.base.frames, state, dtype=torch.float64)
        before = attached.state()
        guards = [] if work.pulls is None else [Anchor(state, 1.0, work.pulls)]
        result = train(
            *(attached, work.x.double(), work.y, work.order),
            optimiser="sgd",
            learning_rate=rate,
            guards=guards,
        )
        found.append((attached.state() - before, result))
    return found


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("pulls", [False, True])
@pytest.mark.parametrize("name", ["small-cnn", "t-resnet", "calanet"])
def test_devices_with_statistics_of_their_own_train_together_as_they_do_alone(
    name: str, pulls: bool, chunk: int
) -> None:
    base = make_base(name=name)
    state, benches = state_of(base), benches_of(base)
    works = works_of(benches, pulls)
    how = {"optimiser": "sgd", "learning_rate": 0.01}
    got = train_cohort(cohort_of(base, state), works, chunk=chunk, **how)  # type: ignore[arg-type]
    assert_alike(got, alone(benches, works, state, 0.01), 1e-9)


def test_statistics_and_pulls_move_what_is_learned() -> None:
    base = make_base()
    state, benches = state_of(base), benches_of(base)
    kinds = [works_of(benches, pulls=pulls) for pulls in (False, True)]
    kinds.append([replace(work, maps={}) for work in kinds[0]])
    ends = [
        train_cohort(cohort_of(base, state), works, optimiser="sgd", learning_rate=0.01)
        for works in kinds
    ]
    for device in (1, 2):
        states = [outcome[device] for outcome in ends]
        assert all(isinstance(one, tuple) for one in states)
        assert len({one[0].digest for one in states if isinstance(one, tuple)}) == len(kinds)


def test_a_network_forgets_the_statistics_of_the_devices_before() -> None:
    base = make_base()
    state, benches = state_of(base), benches_of(base)
    network, works = cohort_of(base, state), works_of(benches)
    plain = [replace(work, maps={}) for work in works]
    wanted = train_cohort(network, plain, optimiser="sgd", learning_rate=0.01)
    train_cohort(network, works, optimiser="sgd", learning_rate=0.01)
    again = train_cohort(network, plain, optimiser="sgd", learning_rate=0.01)
    assert_alike(again, wanted, 0.0)


def test_losses_are_those_under_a_devices_own_statistics() -> None:
    base = make_base()
    state, benches = state_of(base), benches_of(base)
    works = [replace(w, order=[np.arange(len(w.y))]) for w in works_of(benches)]
    found = losses_of(cohort_of(base, state), works)
    for bench, work, loss in zip(benches, works, found, strict=True):
        module = attach(bench.network, base.frames, state, dtype=torch.float64).module
        with torch.no_grad():
            wanted = functional.cross_entropy(module(work.x.double()), work.y)
        assert loss == pytest.approx(float(wanted), rel=1e-9)


def test_maps_at_places_that_the_network_does_not_have_are_refused() -> None:
    base = make_base()
    own = benches_of(base)[1]
    bare = attach_cohort(folded_network(base), base.frames, state_of(base), 1, dtype=torch.float64)
    with pytest.raises(MismatchError, match="no affine map at") as caught:
        bare.restart(1, maps=[own.maps])
    assert caught.value.code == "wrong-maps"
