"""GaLore: all weights move, Adam's state is low-rank (Zhao et al., arXiv 2403.03507, Alg. 2).

A gradient ``G (m, n)`` is projected on its leading r singular vectors of the shorter side, ``Pᵀ·G``
or ``G·P``; Adam's moments live there, ``r·max(m, n)`` entries each, and its normalised step comes
back scaled by 0.25. ``P`` is taken afresh from the gradient every 200 steps; the moments stay as
they are, as in the paper. Kernels count as matrices ``(O, I·Πk)``.

It saves optimiser state, not bytes: every weight moves and would be sent. Being dense weights,
their average is the average of what devices serve.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import nn

from fleet.adapt.train import OptimiserName
from fleet.errors import ModelError, RoundError
from fleet.peft.full import full
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = ["GaLoreAdam", "GaLoreTuned", "galore"]


class GaLoreAdam(torch.optim.Optimizer):
    """Adam on rank-r projections of matrix-shaped gradients, plain Adam on all others.

    A parameter is a matrix when it has two dimensions or more and its shorter side, all but the
    first dimension taken together, is no shorter than the rank. Steps on others are not scaled.

    Args:
        parameters: What to train.
        lr: Learning rate.
        rank: r.
        scale: α, the factor of a step that comes back from the projection.
        refresh: Steps from one projector to the next.
        betas: Decay of Adam's first and second moment.
        eps: Adam's ε.

    Raises:
        ModelError: ``rank-too-small`` below 1.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        rank: int,
        scale: float = 0.25,
        refresh: int = 200,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if rank < 1:
            raise ModelError("rank-too-small", f"GaLore projects on rank 1 or more, not {rank}")
        defaults = {"lr": lr, "rank": rank, "scale": scale, "refresh": refresh}
        super().__init__(parameters, {**defaults, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Raises:
            RoundError: ``training-diverged`` when a projector is due from a gradient that is not
                finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        _move(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _move(
    parameter: nn.Parameter,
    gradient: torch.Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
) -> None:
    """Move one parameter by one step."""
    steps = state.get("step", 0)
    matrix = parameter.dim() > 1 and min(gradient.flatten(1).shape) >= group["rank"]
    if not matrix:
        step = _adam(gradient, state, group)
    else:
        gradient = gradient.flatten(1)
        if steps % group["refresh"] == 0:
            state["projector"] = _projector(gradient, group["rank"])
        projector = state["projector"]
        if _is_wide(gradient):
            step = projector @ _adam(projector.T @ gradient, state, group)
        else:
            step = _adam(gradient @ projector, state, group) @ projector.T
        step = group["scale"] * step
    parameter.sub_(step.view_as(parameter), alpha=group["lr"])


def _adam(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """Take a gradient into Adam's moments and return its normalised step, of the same shape."""
    first, second = group["betas"]
    if "exp_avg" not in state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    state["step"] += 1
    mean = state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
    square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
    step: torch.Tensor = mean / (1 - first ** state["step"]) / root
    return step


def _projector(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the leading singular vectors ``(shorter side, rank)`` of a gradient ``(m, n)``.

    Each one's largest entry is positive.
    """
    if not bool(torch.isfinite(gradient).all()):
        raise RoundError(
            "training-diverged",
            "training diverged: a gradient that GaLore takes a projector from is not finite",
            "Lower the learning rate.",
        )
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    kept: torch.Tensor = left[:, :rank] if _is_wide(gradient) else right[:rank].T
    # Moments outlive a projector, so its signs matter; LAPACK's are arbitrary.
    largest = kept.gather(0, kept.abs().argmax(dim=0, keepdim=True))
    return kept * largest.sign()


def _is_wide(gradient: torch.Tensor) -> bool:
    return gradient.shape[0] <= gradient.shape[1]


class GaLoreTuned(Tuned):
    """A folded network of which all weights and biases are trained with :class:`GaLoreAdam`.

    Args:
        folded: Folded network; not changed.
        rank: Of the projections.
    """

    def __init__(self, folded: nn.Module, rank: int) -> None:
        super().__init__(copy.deepcopy(folded).requires_grad_(False).eval())
        self.unfreeze(full.layout(folded, {}).names)
        self._rank = rank

    def merge(self) -> nn.Module:
        """Return a copy; training has moved the dense weights themselves."""
        return copy.deepcopy(self.module).requires_grad_(False)

    def optimiser(self, name: OptimiserName, learning_rate: float) -> torch.optim.Optimizer:
        """Return a fresh :class:`GaLoreAdam` over all weights.

        Raises:
            ModelError: ``galore-optimiser`` for SGD.
        """
        if name != "adam":
            raise ModelError(
                "galore-optimiser",
                f"GaLore is defined with Adam, whose state it projects, not with {name}",
                "Choose adam, or full for all weights under SGD.",
            )
        return GaLoreAdam(self.trainable().values(), lr=learning_rate, rank=self._rank)


def _attach(start: Start) -> Tuned:
    return GaLoreTuned(start.folded, start.rank)


galore = Tuner(
    name="galore",
    summary="all weights, with Adam's state in a rank-r projection of each gradient",
    attach=_attach,
    exact=True,
    ranked=True,
)
