"""Guards against forgetting, in core space: each adds one gradient to that of the cross-entropy.

A core state is a few kilobytes, so an anchor, or the Fisher information of every entry, costs a
device no more than an update does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fleet.adapt.attach import Attached
from fleet.adapt.cohort.network import CohortNetwork, cohort_of
from fleet.adapt.lean.module import LeanAttached
from fleet.adapt.state import CoreState
from fleet.errors import InputError, ModelError

__all__ = ["Anchor", "Distil", "Teacher", "fisher_information", "joined_fisher"]

Teacher = Callable[[torch.Tensor], torch.Tensor]
"""Of windows ``(n, channels, window)``: what a teacher says of them, logits ``(n, classes)``."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """A pull of every entry to where it is anchored: ``strength/2 · Σ weight·(θ - anchor)²``.

    Without weights it is L2 to the release, the proximal term of FedProx (Li et al., "Federated
    Optimization in Heterogeneous Networks", arXiv:1812.06127, eq. 2); with Fisher information as
    weights it is elastic weight consolidation (Kirkpatrick et al., arXiv:1612.00796, eq. 3).

    Args:
        at: The state that it pulls to.
        strength: Not negative.
        weights: Weight of each entry, not negative, of the layout of ``at``; None for one each.

    Raises:
        InputError: ``guard-strength``.
    """

    at: CoreState
    strength: float
    weights: CoreState | None = None

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def add_gradient(self, attached: Attached, x: torch.Tensor, rows: NDArray[np.int64]) -> None:
        """Add ``strength · weight · (θ - anchor)``, see :class:`fleet.adapt.train.Guard`."""
        for name, parameter in attached.parameters.items():
            if parameter.grad is None:
                continue
            value = parameter.detach()
            anchor = _tensor(self.at, name, value)
            if name in attached.origin:
                # Where training starts this is zero to the bit; Adam would follow any rounding.
                anchor = attached.origin[name].to(value) + anchor
            pull = value - anchor
            if self.weights is not None:
                pull = pull * _tensor(self.weights, name, value)
            parameter.grad.add_(pull, alpha=self.strength)


@dataclass(frozen=True, eq=False)
class Distil:
    """Hold the network to what a teacher said of the same windows.

    The gradient of ``strength · T² · KL(teacher ‖ student)`` at temperature ``T``, mean over the
    step's windows (Hinton et al., arXiv:1503.02531, section 2; as a guard against forgetting Li &
    Hoiem, arXiv:1606.09282).

    Args:
        teacher: Its logits, float ``(windows, classes)``, of all windows that are trained on; or
            the teacher itself, which is asked of the windows of a step when that is taken, without
            gradients: a training that stops has asked nothing in vain, and holds the logits of no
            other step.
        strength: Not negative.
        temperature: ``T``, positive.
        together: Windows that run at once; None for all of a step. In parts only the order of a sum
            is another.

    Raises:
        InputError: ``guard-strength``.
    """

    teacher: torch.Tensor | Teacher
    strength: float
    temperature: float = 2.0
    together: int | None = None

    def __post_init__(self) -> None:
        _check_strength(self.strength)
        if not self.temperature > 0:
            raise InputError("guard-strength", f"a temperature is positive, not {self.temperature}")

    def add_gradient(self, attached: Attached, x: torch.Tensor, rows: NDArray[np.int64]) -> None:
        """Run the step's windows once more, see :class:`fleet.adapt.train.Guard`."""
        chosen, scale = torch.from_numpy(rows), self.strength * self.temperature**2
        size = min(self.together or len(x), len(x))
        for part, which in zip(torch.split(x, size), torch.split(chosen, size), strict=True):
            # First, while nothing is held for the student's backward pass.
            told = self._told(part, which)
            student = functional.log_softmax(attached.module(part) / self.temperature, dim=1)
            wanted = functional.softmax(told.to(student) / self.temperature, dim=1)
            loss = functional.kl_div(student, wanted, reduction="batchmean")
            share = scale if size == len(x) else scale * len(part) / len(x)
            (loss * share).backward()  # type: ignore[no-untyped-call]

    def _told(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if isinstance(self.teacher, torch.Tensor):
            return self.teacher[rows]
        with torch.no_grad():
            return self.teacher(x)


def fisher_information(
    attached: Attached,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    windows: int,
    together: bool = True,
) -> CoreState:
    """Return the diagonal of the empirical Fisher information over core states.

    The mean over windows of the squared gradient of the log-likelihood of the window's own label
    (Kirkpatrick et al., arXiv:1612.00796; with true labels, so empirical), scaled to a largest
    entry of one: what is left of it is which entries matter, and one strength suits all networks.

    Args:
        attached: Network at the state of interest; its gradients are lost. A lean one runs its
            windows together, each as if it were a device of its own.
        x: ``(n, channels, window)``.
        y: ``(n,)`` int64.
        windows: Most windows to look at, evenly spaced.
        together: Whether a lean one may do so; else it takes no more memory than a step on one
            window.

    Returns:
        Of the state's layout and float32; zeros without windows.
    """
    step = max(1, -(-len(y) // windows))
    x, y = x[::step], y[::step]
    at_once = _as_devices(attached, len(y)) if together else None
    total = _squares(attached, x, y) if at_once is None else _squares_of(at_once, x, y)
    largest = max((float(t.max()) for t in total.values() if t.numel()), default=0.0)
    scale = 1.0 / largest if largest > 0 else 0.0
    arrays = {name: (t * scale).cpu().numpy().astype(np.float32) for name, t in total.items()}
    return CoreState.of(arrays)


def _as_devices(attached: Attached, windows: int) -> CohortNetwork | None:
    """Return a network in which each window has parameters of its own, where there is one."""
    if not isinstance(attached, LeanAttached) or not windows:
        return None
    try:
        return cohort_of(attached, windows)
    except ModelError as error:
        if not error.code.startswith("cohort-"):
            raise
        return None


def _squares_of(
    network: CohortNetwork, x: torch.Tensor, y: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return what :func:`_squares` does, all windows at once."""
    ones = torch.ones((len(y), 1), dtype=network.dtype, device=x.device)
    _, gradients = network.gradients(x.unsqueeze(1), y.unsqueeze(1), ones)
    return {name: gradient.square().sum(dim=0) for name, gradient in gradients.items()}


def _squares(attached: Attached, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the sum of squared gradients of each window's own loss, by entry name."""
    total = {name: torch.zeros_like(p.detach()) for name, p in attached.parameters.items()}
    for each in range(len(y)):
        for parameter in attached.parameters.values():
            parameter.grad = None
        loss = functional.cross_entropy(attached.module(x[each : each + 1]), y[each : each + 1])
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in attached.parameters.items():
            if parameter.grad is not None:
                total[name] += parameter.grad.square()
    return total


def joined_fisher(before: CoreState | None, now: CoreState, keep: float) -> CoreState:
    """Return a running Fisher information (online EWC, Schwarz et al., arXiv:1805.06370, eq. 9).

    Args:
        before: So far; None at first, or after the layout has changed.
        now: Of the last release.
        keep: What is left of ``before``, 0 to 1.
    """
    if before is None or before.layout != now.layout:
        return now
    return before.scale(keep) + now


def _tensor(state: CoreState, name: str, like: torch.Tensor) -> torch.Tensor:
    values: Mapping[str, NDArray[np.float32]] = state.arrays
    return torch.from_numpy(np.array(values[name])).to(like)


def _check_strength(strength: float) -> None:
    if not strength >= 0:
        raise InputError("guard-strength", f"a guard's strength is 0 or more, not {strength}")
