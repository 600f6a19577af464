"""What rules rely on of Flower's strategies beyond their documented calls."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi

from server.rules.flower_strategies import CORES, aggregate

pytestmark = pytest.mark.contract

BEFORE = np.linspace(-1, 1, 5)
MEAN = BEFORE + np.linspace(0.1, 0.5, 5)


@pytest.mark.parametrize("kind", [FedAdam, FedYogi])
def test_an_adaptive_strategy_steps_from_current_arrays_by_moments_in_m_t_and_v_t(
    kind: type[FedAdam] | type[FedYogi],
) -> None:
    whole, halves = kind(eta=0.1), kind(eta=0.1)
    for strategy in (whole, halves):
        assert (strategy.current_arrays, strategy.m_t, strategy.v_t) == (None, None, None)
        strategy.current_arrays = {CORES: BEFORE}
    aggregate(whole, [(MEAN, 1)], 1)
    aggregate(halves, [(MEAN, 1)], 1)
    resumed = kind(eta=0.1)
    resumed.current_arrays = {CORES: BEFORE}
    resumed.m_t, resumed.v_t = halves.m_t, halves.v_t
    np.testing.assert_array_equal(
        aggregate(resumed, [(MEAN, 1)], 2), aggregate(whole, [(MEAN, 1)], 2)
    )


def test_momentum_steps_from_current_arrays_by_the_negative_sum_of_deltas() -> None:
    strategy = FedAvgM(server_momentum=0.5)
    assert (strategy.current_arrays, strategy.momentum_vector) == (None, None)
    strategy.current_arrays = ArrayRecord({CORES: Array(BEFORE)})
    strategy.momentum_vector = [BEFORE * 0 + 2]
    after = aggregate(strategy, [(MEAN, 1)])
    np.testing.assert_allclose(strategy.momentum_vector[0], BEFORE - MEAN + 1)
    np.testing.assert_allclose(after, MEAN - 1)


@pytest.mark.parametrize("kind", [FedAdam, FedYogi])
def test_the_defaults_that_docs_and_records_do_not_repeat_are_these(
    kind: type[FedAdam] | type[FedYogi],
) -> None:
    strategy = kind()
    assert (strategy.beta_1, strategy.beta_2, strategy.tau) == (0.9, 0.99, 1e-3)
    assert FedAvgM().server_learning_rate == 1.0


def test_one_reply_comes_back_bit_for_bit() -> None:
    assert aggregate(FedAvg(), [(MEAN, 1)]).tobytes() == MEAN.tobytes()
