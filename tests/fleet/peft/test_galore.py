from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fleet.errors import ModelError, RoundError
from fleet.peft.galore import GaLoreAdam, galore
from fleet.peft.tuner import Start

MakeStart = Callable[..., Start]


def gradients(shape: tuple[int, ...], steps: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(steps)]


def follow(stepper: torch.optim.Optimizer, given: list[torch.Tensor]) -> torch.Tensor:
    """Feed gradients to an optimiser of one parameter; return where it ends."""
    (parameter,) = stepper.param_groups[0]["params"]
    for gradient in given:
        parameter.grad = gradient.clone()
        stepper.step()
    return parameter.detach()


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(5,), (3, 40), (40, 3), (2, 3, 4)], ids=str)
def test_vectors_and_matrices_narrower_than_the_rank_follow_plain_adam(
    shape: tuple[int, ...],
) -> None:
    ours = follow(GaLoreAdam([zeros(*shape)], lr=0.1, rank=4), gradients(shape))
    wanted = follow(torch.optim.Adam([zeros(*shape)], lr=0.1), gradients(shape))
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3, 2), (6, 3)], ids=["wide", "tall"])
def test_with_a_projector_that_permutes_and_no_scale_it_is_adam(shape: tuple[int, ...]) -> None:
    # Orthogonal rows (columns) of different norms: the singular vectors of the shorter side are
    # unit vectors up to sign and order, with which Adam, entry by entry and odd, commutes.
    first = torch.zeros(3, 6, dtype=torch.float64)
    first[0, 1], first[1, 0], first[2, 4] = 2.0, -5.0, 1.0
    first = (first if len(shape) == 3 else first.T).reshape(shape)
    given = [first, *gradients(shape)]
    ours = follow(GaLoreAdam([zeros(*shape)], lr=0.1, rank=3, scale=1.0), given)
    wanted = follow(torch.optim.Adam([zeros(*shape)], lr=0.1), given)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


def test_the_first_step_on_a_rank_one_gradient_is_known() -> None:
    u = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    v = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0], dtype=torch.float64)
    stepper = GaLoreAdam([zeros(3, 5)], lr=0.1, rank=1)
    moved = follow(stepper, [torch.outer(u, v)])
    # Adam's first step is the sign of each projected entry.
    torch.testing.assert_close(moved, -0.1 * 0.25 * torch.outer(u, v.sign()), rtol=1e-6, atol=1e-9)


def by_hand(given: list[np.ndarray], rank: int, lr: float, refresh: int) -> np.ndarray:
    """Algorithm 2 of the paper for ``m ≤ n``, written down once more."""
    weight = np.zeros_like(given[0])
    mean = square = np.zeros((rank, given[0].shape[1]))
    for t, gradient in enumerate(given):
        if t % refresh == 0:
            projector = np.linalg.svd(gradient, full_matrices=False)[0][:, :rank]
            projector = projector * np.sign(projector.max(axis=0) + projector.min(axis=0))
        low = projector.T @ gradient
        mean, square = 0.9 * mean + 0.1 * low, 0.999 * square + 0.001 * low**2
        unbiased = mean / (1 - 0.9 ** (t + 1)), square / (1 - 0.999 ** (t + 1))
        weight = weight - lr * 0.25 * projector @ (unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8))
    return weight


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("refresh", [2, 200])
def test_steps_are_those_of_the_paper_s_algorithm_on_the_shorter_side(
    tall: bool, refresh: int
) -> None:
    given = gradients((4, 7))
    fed = [g.T for g in given] if tall else given
    ours = follow(GaLoreAdam([zeros(*fed[0].shape)], lr=0.1, rank=2, refresh=refresh), fed)
    wanted = torch.from_numpy(by_hand([g.numpy() for g in given], 2, 0.1, refresh))
    torch.testing.assert_close(ours.T if tall else ours, wanted, rtol=1e-9, atol=1e-9)


def test_until_the_projector_changes_the_update_has_its_rank_and_the_state_its_size() -> None:
    stepper = GaLoreAdam([zeros(8, 5, 3)], lr=0.1, rank=2, refresh=4)
    spectrum = torch.linalg.svdvals(follow(stepper, gradients((8, 5, 3), 4)).flatten(1))
    assert spectrum[2] < 1e-12 < spectrum[1]
    (state,) = stepper.state.values()
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (2, 15)
    assert state["projector"].shape == (8, 2)
    after = follow(stepper, gradients((8, 5, 3))[-1:])
    spectrum = torch.linalg.svdvals(after.flatten(1))
    assert spectrum[2] > 1e-6


def test_all_weights_but_the_unfolded_norms_are_trained_and_sent(start_of: MakeStart) -> None:
    start = start_of("t-resnet")
    trained = galore.attach(start).trainable()
    left = {n for n, _ in start.folded.named_parameters()} - trained.keys()
    assert left
    assert all("norm" in name for name in left)
    assert galore.attach(start).update_bytes() == 4 * sum(p.numel() for p in trained.values())


def test_sgd_is_refused_because_galore_projects_adam_s_state(start_of: MakeStart) -> None:
    with pytest.raises(ModelError, match="with Adam") as caught:
        galore.attach(start_of()).optimiser("sgd", 0.1)
    assert caught.value.code == "galore-optimiser"


def test_no_projector_is_taken_from_a_gradient_that_is_not_finite() -> None:
    with pytest.raises(RoundError, match="not finite") as caught:
        follow(GaLoreAdam([zeros(3, 4)], lr=0.1, rank=2), [gradients((3, 4))[0] / 0])
    assert caught.value.code == "training-diverged"


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    stepper = GaLoreAdam([parameter], lr=0.1, rank=2)

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    assert stepper.step(closure) == 12.0
    assert float(parameter.detach().square().sum()) < 12.0
