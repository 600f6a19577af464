from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fleet.adapt.attach import Attached, attach, make_frames
from fleet.adapt.state import CORE_SUFFIX, CoreState
from fleet.adapt.train import TrainingResult, batches, predict, train
from fleet.errors import RoundError
from fleet.seeds import generator


@given(windows=st.integers(0, 40), batch=st.integers(1, 12), epochs=st.integers(0, 3))
def test_every_epoch_visits_every_window_once(windows: int, batch: int, epochs: int) -> None:
    made = list(batches(windows, batch=batch, epochs=epochs, generator=generator(0, 1, "a", "b")))
    per_epoch = -(-windows // batch)
    assert len(made) == epochs * per_epoch
    assert all(1 <= len(index) <= batch for index in made)
    for epoch in range(epochs):
        visited = np.concatenate(
            made[epoch * per_epoch : (epoch + 1) * per_epoch] or [np.zeros(0, np.int64)]
        )
        np.testing.assert_array_equal(np.sort(visited), np.arange(windows))


def test_only_the_last_batch_of_an_epoch_is_short() -> None:
    made = batches(10, batch=4, epochs=2, generator=generator(0, 1, "a", "b"))
    assert [len(index) for index in made] == [4, 4, 2, 4, 4, 2]


def order_of(round_number: int = 1, device: str = "a", windows: int = 24) -> list[Any]:
    rng = generator(7, round_number, device, "batches")
    return list(batches(windows, batch=8, epochs=2, generator=rng))


def test_the_same_names_give_the_same_order_and_others_another() -> None:
    one = np.concatenate(order_of())
    np.testing.assert_array_equal(one, np.concatenate(order_of()))
    for other in (order_of(2), order_of(device="b")):
        assert (np.concatenate(other) != one).any()
    assert (one[:24] != one[24:]).any()


def test_the_first_order_of_a_seed_is_the_golden_one() -> None:
    (first,) = batches(8, batch=8, epochs=1, generator=generator(0, 1, "person-07", "batches"))
    assert first.dtype == np.int64
    assert first.tolist() == [0, 1, 3, 2, 6, 5, 4, 7]


def problem(windows: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    y = np.arange(windows) % 4
    x = rng.standard_normal((windows, 3, 16)) + 2 * np.sin(np.arange(16) * (1 + y[:, None, None]))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def fresh(small: Any) -> Attached:
    frames = make_frames(small.folded, "svd", 2)
    cores = {
        name + CORE_SUFFIX: np.zeros((frame.array.shape[2], 2), np.float32)
        for name, frame in frames.items()
    }
    return attach(small.folded, frames, CoreState.of(cores), dtype=torch.float32)


@pytest.mark.parametrize(("optimiser", "rate"), [("sgd", 0.01), ("adam", 0.01)])
def test_training_lowers_the_loss_and_repeats_bit_for_bit(
    small: Any, optimiser: Any, rate: float
) -> None:
    x, y = problem()

    def run() -> tuple[Attached, list[TrainingResult]]:
        attached = fresh(small)
        results = [
            train(attached, x, y, order_of(number), optimiser=optimiser, learning_rate=rate)
            for number in (1, 2, 3)
        ]
        return attached, results

    one, results = run()
    other, again = run()
    assert one.state().digest == other.state().digest
    assert one.state().norm > 0
    assert results == again
    assert [result.steps for result in results] == [6, 6, 6]
    assert results[-1].loss < results[0].loss


def test_the_first_step_of_sgd_is_the_rate_times_the_gradient(small: Any) -> None:
    x, y = problem(8)
    attached = fresh(small)
    nn.functional.cross_entropy(attached.module(x), y).backward()
    wanted = {name: -0.5 * p.grad for name, p in attached.parameters.items()}  # type: ignore[operator]
    moved = fresh(small)
    result = train(moved, x, y, [np.arange(8)], optimiser="sgd", learning_rate=0.5)
    assert result.steps == 1
    for name, parameter in moved.parameters.items():
        torch.testing.assert_close(parameter.detach(), wanted[name])


def test_the_reported_loss_is_the_mean_over_the_steps(small: Any) -> None:
    x, y = problem(8)
    attached = fresh(small)
    halves = [np.arange(4), np.arange(4, 8)]
    with torch.no_grad():
        wanted = np.mean(
            [float(nn.functional.cross_entropy(attached.module(x[i]), y[i])) for i in halves]
        )
    result = train(attached, x, y, halves, optimiser="sgd", learning_rate=0.0)
    assert result.steps == 2
    assert result.loss == pytest.approx(wanted, rel=1e-6)


def test_training_without_a_step_changes_nothing(small: Any) -> None:
    attached = fresh(small)
    x, y = problem(8)
    assert train(attached, x, y, [], optimiser="sgd", learning_rate=0.1).steps == 0
    assert attached.state().norm == 0.0


def test_a_rate_that_diverges_is_an_error(small: Any) -> None:
    x, y = problem()
    with pytest.raises(RoundError, match="learning rate 1e\\+30") as caught:
        train(fresh(small), x, y, order_of(), optimiser="sgd", learning_rate=1e30)
    assert caught.value.code == "training-diverged"


def test_a_window_that_is_not_finite_is_an_error(small: Any) -> None:
    x, y = problem()
    x[5, 1, 3] = torch.nan
    with pytest.raises(RoundError) as caught:
        train(fresh(small), x, y, order_of(), optimiser="sgd", learning_rate=0.01)
    assert caught.value.code == "training-diverged"


@pytest.mark.parametrize("batch", [1, 4, 9, 100])
def test_predictions_do_not_depend_on_the_batch(small: Any, batch: int) -> None:
    x, _ = problem(9)
    with torch.no_grad():
        wanted = small.folded(x).argmax(dim=1).numpy()
    got = predict(small.folded, x, batch=batch)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, wanted)


def test_no_windows_give_no_predictions(small: Any) -> None:
    got = predict(small.folded, torch.zeros(0, 3, 16))
    assert (got.shape, got.dtype) == ((0,), np.int64)
