from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fleet.adapt.attach import attach
from fleet.adapt.cohort.train import Outcome, losses_of, train_cohort
from fleet.adapt.cohort.work import DeviceWork
from fleet.adapt.state import CoreState
from fleet.adapt.train import train
from fleet.continual.guards import Anchor
from fleet.errors import MismatchError
from tests.fleet.adapt.cohort.fleets import Bench, assert_alike, bench, fleet

PULL = 0.3
SGD: dict[str, Any] = {"optimiser": "sgd", "learning_rate": 0.01}
ADAM: dict[str, Any] = {"optimiser": "adam", "learning_rate": 0.003}


def ahead_of(tried: Bench, seed: int) -> CoreState:
    random, layout = np.random.default_rng(seed), tried.state.layout
    return CoreState.from_flat(layout, 0.05 * random.standard_normal(layout.size))


def setting_out(tried: Bench) -> list[DeviceWork]:
    """Ragged devices, all but the second ahead of the start."""
    return [
        replace(one, ahead=None if seed == 1 else ahead_of(tried, seed))
        for seed, one in enumerate(fleet())
    ]


def each_alone(tried: Bench, works: Sequence[DeviceWork], pull: float, **how: Any) -> list[Outcome]:
    """Where devices end, from the common start; one by one under plain autograd."""
    found: list[Outcome] = []
    for work in works:
        begins = tried.state if work.ahead is None else tried.state + work.ahead
        attached = attach(tried.network, tried.frames, begins, dtype=torch.float64)
        guards = [Anchor(tried.state, pull)] if pull else []
        result = train(attached, work.x.double(), work.y, work.order, guards=guards, **how)
        found.append((attached.state() - tried.state, result))
    return found


@pytest.mark.parametrize("pull", [0.0, PULL])
@pytest.mark.parametrize("how", [SGD, ADAM])
@pytest.mark.parametrize("chunk", [1, 8])
def test_devices_that_begin_apart_are_pulled_to_the_start_as_they_are_alone(
    how: dict[str, Any], pull: float, chunk: int
) -> None:
    tried = bench("small-cnn")
    works = setting_out(tried)
    cohort = tried.cohort()
    got = train_cohort(cohort, works, pull=pull, chunk=chunk, **how)
    assert_alike(got, each_alone(tried, works, pull, **how), 1e-9)


def test_a_network_forgets_where_the_devices_before_began() -> None:
    tried, works = bench("small-cnn"), fleet()
    cohort = tried.cohort()
    wanted = train_cohort(cohort, works, **SGD)
    train_cohort(cohort, setting_out(tried), pull=PULL, **SGD)
    assert_alike(train_cohort(cohort, works, **SGD), wanted, 0.0)


def test_losses_are_those_of_each_devices_network_where_it_begins() -> None:
    tried = bench("small-cnn")
    works = [replace(w, order=[np.arange(len(w.y))]) for w in setting_out(tried)]
    for work, loss in zip(works, losses_of(tried.cohort(), works), strict=True):
        begins = tried.state if work.ahead is None else tried.state + work.ahead
        module = attach(tried.network, tried.frames, begins, dtype=torch.float64).module
        with torch.no_grad():
            wanted = functional.cross_entropy(module(work.x.double()), work.y)
        assert loss == pytest.approx(float(wanted), rel=1e-10)


def test_a_start_of_another_layout_is_refused() -> None:
    tried = bench("small-cnn")
    other = ahead_of(bench("small-cnn", "core"), 0)
    with pytest.raises(MismatchError) as caught:
        train_cohort(tried.cohort(), [replace(fleet()[0], ahead=other)], **SGD)
    assert caught.value.code == "wrong-layout"
