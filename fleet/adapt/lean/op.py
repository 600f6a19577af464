"""What an operation of a tape is: its forward, what it keeps, its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from fleet.errors import ModelError

__all__ = ["Backward", "Forward", "Kept", "Op", "batch_mixed", "not_the_batch"]

# Tensors, bits and anything with ``nbytes``; shapes weigh nothing.
Kept = tuple[object, ...]


class Forward(NamedTuple):
    """What the tape tells an operation in the forward pass.

    Args:
        owned: By input: whether the operation may overwrite it.
        keep: Whether a backward pass will visit this operation.
        wants: By input: whether its gradient will be asked for.
        noise: Source of dropout masks; None while dropout is off.
    """

    owned: tuple[bool, ...]
    keep: bool
    wants: tuple[bool, ...]
    noise: torch.Generator | None = None


class Backward(NamedTuple):
    """What the tape tells an operation in the backward pass.

    Args:
        owned: Whether the operation may overwrite the gradient that it is given.
        wants: By input: whether its gradient is asked for.
        collect: Adds to the gradient of a trained entry.
    """

    owned: bool
    wants: tuple[bool, ...]
    collect: Callable[[str, torch.Tensor], None]


class Op(Protocol):
    """One operation of a tape."""

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of what it trains."""
        ...

    @property
    def pins(self) -> bool:
        """Whether it keeps inputs or its output by reference: nobody may overwrite them then."""
        ...

    @property
    def keeps(self) -> str:
        """What it saves, in words."""
        ...

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the output and what the backward pass needs."""
        ...

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of each input, None where it is not wanted."""
        ...


def not_the_batch(dim: int, x: torch.Tensor) -> None:
    """Refuse an operation over the batch: its windows must not know of each other."""
    if dim % x.dim() == 0:
        raise batch_mixed()


def batch_mixed() -> ModelError:
    """Make the error of a network whose windows are not independent."""
    return ModelError(
        "batch-mixed",
        "an operation of this network works across the windows of a batch",
        "Train it with fleet.adapt.attach instead.",
    )
