from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)

from fleet.adapt.state import CoreState
from fleet.errors import MismatchError, RoundError
from fleet.federate.admission import Admitted
from fleet.federate.aggregate import PartialSum, dequantise, quantise
from fleet.federate.records import WIRE_FORMAT, UpdateHeader
from simulations.cohort.strategies import aggregate
from tests.fleet.federate.factories import LAYOUT

STATE = CoreState.from_flat(
    LAYOUT, np.random.default_rng(5).normal(0, 0.5, LAYOUT.size).astype(np.float32)
)
DELTAS = np.random.default_rng(7).normal(0.1, 0.05, (7, LAYOUT.size)).astype(np.float32)
# A few steps of 2⁻³².
CLOSE = 1e-9


def updates(deltas: np.ndarray, weights: Sequence[int] = ()) -> list[Admitted]:
    digest = "0" * 64
    header = UpdateHeader(
        format=WIRE_FORMAT,
        plan="p",
        device="d",
        base=digest,
        frame=digest,
        layout=LAYOUT.digest,
        examples=1,
        steps=1,
        loss=0.0,
    )
    return [
        Admitted(header, quantise(delta), weight, float(np.linalg.norm(delta)), digest)
        for delta, weight in zip(deltas, weights or [1] * len(deltas), strict=True)
    ]


def moved(strategy: Strategy, found: list[Admitted]) -> np.ndarray:
    return dequantise(aggregate(strategy, STATE, found))


def test_fedavg_is_our_weighted_mean() -> None:
    weights = [1, 5, 2, 400, 3, 3, 9]
    found = updates(DELTAS, weights)
    ours = PartialSum.of(((u.steps, u.weight) for u in found), LAYOUT.size).mean()
    np.testing.assert_allclose(moved(FedAvg(), found), dequantise(ours), atol=CLOSE)


def test_the_median_is_taken_entry_by_entry() -> None:
    np.testing.assert_allclose(
        moved(FedMedian(), updates(DELTAS)), np.median(DELTAS, axis=0), atol=CLOSE
    )


def test_the_trimmed_mean_leaves_out_both_ends() -> None:
    middle = np.sort(DELTAS, axis=0)[1:-1].mean(axis=0)
    found = moved(FedTrimmedAvg(beta=0.2), updates(DELTAS))
    np.testing.assert_allclose(found, middle, atol=CLOSE)


@pytest.mark.parametrize(
    "strategy",
    [
        FedMedian(),
        FedTrimmedAvg(beta=0.3),
        Krum(num_malicious_nodes=1),
        MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4),
        Bulyan(num_malicious_nodes=1),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_robust_strategies_stay_among_the_honest_when_one_device_lies(strategy: Strategy) -> None:
    deltas = DELTAS.copy()
    deltas[3] *= -40
    honest = np.delete(DELTAS, 3, axis=0)
    found = moved(strategy, updates(deltas))
    assert (found >= honest.min(axis=0) - CLOSE).all()
    assert (found <= honest.max(axis=0) + CLOSE).all()
    assert (moved(FedAvg(), updates(deltas)) < honest.min(axis=0)).any()


def test_krum_follows_one_device() -> None:
    found = moved(Krum(num_malicious_nodes=1), updates(DELTAS))
    assert np.abs(DELTAS - found).max(axis=1).min() < CLOSE


def test_a_strategy_that_steps_from_what_it_sent_is_refused_with_its_name() -> None:
    with pytest.raises(RoundError, match="FedAdam") as caught:
        aggregate(FedAdam(), STATE, updates(DELTAS))
    assert caught.value.code == "strategy"


def test_no_updates_make_no_core_state() -> None:
    with pytest.raises(RoundError, match="FedMedian made no core state of 0"):
        aggregate(FedMedian(), STATE, [])


def test_what_cannot_be_kept_is_refused() -> None:
    class Far(FedAvg):
        def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
            arrays, metrics = super().aggregate_train(server_round, replies)
            far = {n: type(a)(a.numpy() + 100) for n, a in arrays.items()}
            return type(arrays)(far), metrics

    with pytest.raises(MismatchError) as caught:
        aggregate(Far(), STATE, updates(DELTAS))
    assert caught.value.code == "entry-too-large"
