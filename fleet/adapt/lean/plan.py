"""Micro-batches: a batch in parts, so that a step fits a budget of bytes.

With frozen batch norm the gradient of a batch is the sum of its windows' gradients, so adding up
micro-batches is exact: only the order of a sum changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from fleet.adapt.lean.memory import dynamic_peak
from fleet.adapt.lean.module import LeanNetwork
from fleet.errors import InputError

__all__ = ["MicroBatchPlan", "accumulate", "plan_micro_batches"]


@dataclass(frozen=True)
class MicroBatchPlan:
    """How a batch is cut.

    Args:
        batch: Windows per optimiser step.
        windows: Windows per micro-batch.
        peak_bytes: Most bytes that a micro-batch holds beyond parameters and optimiser state.
        budget_bytes: What it may hold.
    """

    batch: int
    windows: int
    peak_bytes: int
    budget_bytes: int

    @property
    def parts(self) -> int:
        """Micro-batches per optimiser step."""
        return -(-self.batch // self.windows)

    def __str__(self) -> str:
        return (
            f"batch {self.batch} in {self.parts} micro-batch(es) of {self.windows}: "
            f"{self.peak_bytes:,} of {self.budget_bytes:,} bytes"
        )


def plan_micro_batches(
    network: LeanNetwork, window: torch.Tensor, batch: int, memory_budget_bytes: int
) -> MicroBatchPlan:
    """Find the largest micro-batch whose forward and backward pass fit the budget.

    Sizes 1, 2, 4, … and the batch are measured with the allocator, each only when the two before it
    say that it should fit; so planning itself stays near the budget.

    Args:
        network: What will be trained; its gradients are not touched.
        window: One window ``(channels, ...)`` of its dtype and on its device; its values are
            immaterial.
        batch: Windows per optimiser step.
        memory_budget_bytes: Budget for activations, gradients and scratch memory.

    Raises:
        InputError: ``memory-budget-too-small`` when a single window does not fit.
    """
    sizes = [2**power for power in range(max(batch - 1, 0).bit_length())]
    peaks: list[tuple[int, int]] = []
    for size in [*sizes, batch]:
        if len(peaks) > 1 and _expected(size, *peaks[-2:]) > memory_budget_bytes:
            break
        peak = _step_peak(network, window, size)
        if peak > memory_budget_bytes:
            break
        peaks.append((size, peak))
    if not peaks:
        raise InputError(
            "memory-budget-too-small",
            f"training on one window takes {peak:,} bytes, the budget is {memory_budget_bytes:,}",
            f"Give --memory-budget {peak} or more.",
        )
    windows, peak = peaks[-1]
    return MicroBatchPlan(batch, windows, peak, memory_budget_bytes)


def accumulate(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, windows: int) -> float:
    """Add the gradient of the batch's mean cross-entropy, one micro-batch after the other.

    Args:
        module: Network to train; ``grad`` of its parameters grows.
        x: Windows ``(batch, channels, ...)``.
        y: Labels ``(batch,)`` int64.
        windows: Windows per micro-batch.

    Returns:
        Mean cross-entropy of the batch, in nats.
    """
    total = 0.0
    for part, labels in zip(torch.split(x, windows), torch.split(y, windows), strict=True):
        loss = functional.cross_entropy(module(part), labels, reduction="sum") / len(y)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _step_peak(network: LeanNetwork, window: torch.Tensor, size: int) -> int:
    x = torch.zeros((size, *window.shape), dtype=window.dtype, device=window.device)
    trained = [p for p in network.parameters() if p.requires_grad]
    labels = torch.zeros(size, dtype=torch.int64, device=window.device)

    def step() -> None:
        loss = functional.cross_entropy(network(x), labels)
        torch.autograd.grad(loss, trained, allow_unused=True)

    return dynamic_peak(step, window.device)


def _expected(size: int, first: tuple[int, int], second: tuple[int, int]) -> float:
    """Extend the line through two measurements."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return second[1] + slope * (size - second[0])
