from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fleet.adapt.train import batches, predict
from fleet.models.config import ModelConfig
from fleet.models.pretrain import pretrain
from fleet.models.registry import build
from fleet.seeds import derive_seed, generator

CONFIG = ModelConfig(name="small-cnn", channels=2, classes=3, window=16)
Problem = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Windows whose class is their frequency."""
    rng = np.random.default_rng(0)
    y = np.arange(65) % 3
    phase = rng.uniform(0, 2 * np.pi, (65, 2, 1))
    x = np.sin(np.arange(16) * (0.4 + 0.6 * y[:, None, None]) + phase)
    return (x + 0.05 * rng.standard_normal(x.shape)).astype(np.float32), y


def bits(network: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())


def test_a_toy_problem_is_learned_and_every_epoch_told(problem: Problem) -> None:
    x, y = problem
    told: list[tuple[int, float]] = []
    network = pretrain(
        CONFIG, x, y, seed=1, epochs=8, batch=16, on_epoch=lambda *news: told.append(news)
    )
    assert not network.training
    assert [epoch for epoch, _ in told] == list(range(1, 9))
    assert told[-1][1] < 0.5 * told[0][1]
    assert (predict(network, torch.from_numpy(x)) == y).mean() > 0.95


def test_pretraining_repeats_bit_for_bit_and_follows_seed_and_purpose(problem: Problem) -> None:
    x, y = problem
    one = bits(pretrain(CONFIG, x, y, seed=1, epochs=1, batch=16))
    torch.manual_seed(77)
    np.random.seed(77)
    assert bits(pretrain(CONFIG, x, y, seed=1, epochs=1, batch=16)) == one
    assert bits(pretrain(CONFIG, x, y, seed=2, epochs=1, batch=16)) != one
    assert bits(pretrain(CONFIG, x, y, seed=1, epochs=1, batch=16, purpose="other")) != one


def test_a_last_batch_of_one_window_is_left_out(problem: Problem) -> None:
    # 65 windows in batches of 16 leave one over, and batch norm has no variance over it.
    x, y = problem
    network = pretrain(CONFIG, x, y, seed=1, epochs=2, batch=16)
    assert int(network.get_buffer("norm1.num_batches_tracked")) == 2 * 4


def test_the_windows_are_not_changed(problem: Problem) -> None:
    x, y = problem
    before = x.tobytes(), y.tobytes()
    pretrain(CONFIG, x, y, seed=1, epochs=1, batch=32)
    assert (x.tobytes(), y.tobytes()) == before


@pytest.mark.parametrize(("epochs", "batch"), [(3, 16), (1, 16), (1, 64)])
def test_pretraining_is_the_optimiser_and_the_cycle_of_torch_to_the_bit(
    problem: Problem, epochs: int, batch: int
) -> None:
    x, y = problem
    model = build(CONFIG, derive_seed(1, 0, "server", "base/weights"))
    stepper = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3, foreach=False)
    total = epochs * -(-len(x) // batch) + 1
    cycle = torch.optim.lr_scheduler.OneCycleLR(stepper, max_lr=2e-3, total_steps=total)
    rng = generator(1, 0, "server", "base/batches")
    for chosen in batches(len(x), batch=batch, epochs=epochs, generator=rng):
        if len(chosen) > 1:
            stepper.zero_grad()
            rows = torch.from_numpy(chosen)
            functional.cross_entropy(
                model.train()(torch.from_numpy(x)[rows]), torch.from_numpy(y)[rows]
            ).backward()  # type: ignore[no-untyped-call]
            stepper.step()
            cycle.step()
    assert bits(pretrain(CONFIG, x, y, seed=1, epochs=epochs, batch=batch)) == bits(model)
