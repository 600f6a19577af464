"""Flower's strategies as rules, against naive ones in NumPy."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import RoundError
from fleet.federate.aggregate import dequantise
from server.rules import NOTHING
from server.rules.flower_strategies import CORES, aggregate
from tests.server.rules.making import (
    SIZE,
    STEP,
    closed,
    cohort,
    deltas_of,
    moved,
    naive_krum,
    release,
)

# A step of 2⁻³², and half a one for the rounding of the mean of two.
CLOSE = 1.5 * STEP
seeds = st.integers(0, 200)
# A round of Flower's messages takes milliseconds.
FEW = 15


@given(seed=seeds, devices=st.integers(3, 12))
@settings(max_examples=FEW)
def test_the_median_is_taken_entry_by_entry(seed: int, devices: int) -> None:
    updates = cohort(devices, seed)
    wanted = np.sort(deltas_of(updates), axis=0)
    middle = (wanted[(devices - 1) // 2] + wanted[devices // 2]) / 2
    np.testing.assert_allclose(moved("median", updates), middle, rtol=0, atol=CLOSE)


@given(seed=seeds)
@settings(max_examples=FEW)
def test_the_median_of_an_odd_number_has_entries_that_were_sent_bit_for_bit(seed: int) -> None:
    updates = cohort(7, seed)
    sent = np.stack([each.steps for each in updates.values()])
    np.testing.assert_array_equal(closed("median", updates).mean, np.sort(sent, axis=0)[3])


@given(seed=seeds, devices=st.integers(5, 12), share=st.sampled_from([0.2, 0.25, 0.4]))
@settings(max_examples=FEW)
def test_the_trimmed_mean_leaves_out_both_ends(seed: int, devices: int, share: float) -> None:
    updates, out = cohort(devices, seed), int(share * devices)
    wanted = np.sort(deltas_of(updates), axis=0)[out : devices - out].mean(axis=0)
    np.testing.assert_allclose(moved(f"trimmed:{share}", updates), wanted, rtol=0, atol=CLOSE)


@given(seed=seeds, liars=st.integers(0, 3))
@settings(max_examples=FEW)
def test_krum_follows_the_device_with_the_nearest_neighbours(seed: int, liars: int) -> None:
    updates = cohort(10, seed, liars=liars)
    best = sorted(updates)[naive_krum(deltas_of(updates), liars)[0]]
    found = closed(f"krum:{liars}", updates)
    np.testing.assert_array_equal(found.mean, updates[best].steps)
    assert found.record == {"followed": [best]}


@given(seed=seeds, liars=st.integers(0, 3))
@settings(max_examples=FEW)
def test_multikrum_is_the_weighted_mean_of_the_best(seed: int, liars: int) -> None:
    updates = cohort(10, seed, liars=liars)
    best = naive_krum(deltas_of(updates), liars)[: 10 - liars - 2]
    weights = [updates[sorted(updates)[n]].weight for n in best]
    wanted = np.average(deltas_of(updates)[best], axis=0, weights=weights)
    np.testing.assert_allclose(moved(f"multikrum:{liars}", updates), wanted, rtol=0, atol=CLOSE)


def test_krum_compares_what_float32_would_round_away() -> None:
    # Cores that have grown a thousandfold of what a round moves them by.
    far = release(scale=400.0)
    updates = cohort(9)
    best = sorted(updates)[naive_krum(deltas_of(updates), 3)[0]]
    assert closed("krum:3", updates, far).record == {"followed": [best]}


@pytest.mark.parametrize("rule", ["median", "trimmed:0.2", "krum:1"])
def test_a_device_cannot_buy_itself_weight(rule: str) -> None:
    updates = cohort(7)
    heavy = {name: replace(each, weight=4096) for name, each in updates.items()}
    heavy["person-00"] = updates["person-00"]
    np.testing.assert_array_equal(closed(rule, heavy).mean, closed(rule, updates).mean)


@given(seed=seeds, beta=st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=FEW)
def test_momentum_adds_up_the_means(seed: int, beta: float) -> None:
    memory, velocity = NOTHING, np.zeros(SIZE)
    for turn in range(3):
        updates = cohort(4, seed + turn)
        velocity = beta * velocity + moved("mean", updates)
        found = closed(f"momentum:{beta}", updates, release(turn), memory)
        np.testing.assert_allclose(dequantise(found.mean), velocity, rtol=0, atol=1e-9)
        memory = found.memory
    assert memory.steps == 3


@pytest.mark.parametrize("rule", ["adam", "yogi"])
def test_adam_and_yogi_step_by_both_moments_of_the_means(rule: str) -> None:
    rate, tau, (b1, b2) = 0.01, 1e-3, (0.9, 0.99)
    memory = NOTHING
    first, second = np.zeros(SIZE), np.zeros(SIZE)
    for turn in range(1, 4):
        updates = cohort(4, turn)
        mean = moved("mean", updates)
        first = b1 * first + (1 - b1) * mean
        if rule == "adam":
            second = b2 * second + (1 - b2) * mean**2
            eta = rate * np.sqrt(1 - b2 ** (turn + 1)) / (1 - b1 ** (turn + 1))
        else:
            second = second - (1 - b2) * mean**2 * np.sign(second - mean**2)
            eta = rate
        found = closed(f"{rule}:{rate}", updates, release(turn), memory)
        wanted = eta * first / (np.sqrt(second) + tau)
        np.testing.assert_allclose(dequantise(found.mean), wanted, rtol=0, atol=1e-9)
        assert found.record == {"steps": turn, "memory": found.memory.digest}
        memory = found.memory


def cores(devices: int) -> list[tuple[np.ndarray, int]]:
    return [(each, 1) for each in np.random.default_rng(3).normal(size=(devices, SIZE))]


def test_any_strategy_that_needs_replies_alone_can_be_asked() -> None:
    found = cores(5)
    wanted = np.mean([flat for flat, _ in found], axis=0)
    np.testing.assert_allclose(aggregate(FedAvg(), found), wanted, atol=1e-12)


def test_a_strategy_that_steps_from_what_it_sent_is_refused_with_its_name() -> None:
    with pytest.raises(RoundError, match="FedAdam failed") as caught:
        aggregate(FedAdam(), cores(3))
    assert caught.value.code == "strategy"


def test_no_updates_make_no_cores() -> None:
    with pytest.raises(RoundError, match="FedMedian made no cores of 0"):
        aggregate(FedMedian(), [])


@pytest.mark.parametrize("shape", [(SIZE + 1,), (1, SIZE), ()])
def test_cores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    class Odd(FedAvg):
        def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
            return ArrayRecord({CORES: Array(np.zeros(shape))}), None

    with pytest.raises(RoundError, match="Odd made cores of shape"):
        aggregate(Odd(), cores(2))


def test_a_strategy_writes_nothing_to_the_log_and_leaves_its_level(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("flwr")
    before = logger.level
    closed("median", cohort(3))
    assert logger.level == before
    assert "aggregate_train" not in capfd.readouterr().err
