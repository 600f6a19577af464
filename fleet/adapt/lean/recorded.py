"""The way out for what a tape does not know: plain autograd, around one node alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fleet.adapt.lean.op import Backward, Forward, Kept

__all__ = ["Recorded"]


@dataclass(frozen=True)
class _Graph:
    """A node's own autograd graph, and the bytes that PyTorch keeps for it."""

    inputs: list[torch.Tensor]
    output: torch.Tensor
    nbytes: int


@dataclass(frozen=True)
class Recorded:
    """A node run under plain autograd, which saves what it pleases.

    Args:
        call: The node as a function of its tensors.
        trained: What is trained in it, by entry name.
    """

    call: Callable[..., torch.Tensor]
    trained: Mapping[str, torch.nn.Parameter]

    keeps = "what plain autograd saves"
    pins = True

    @property
    def entries(self) -> tuple[str, ...]:
        """What it trains."""
        return tuple(self.trained)

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the node's output, recording it only where a gradient will be asked for."""
        if not run.keep:
            with torch.no_grad():
                return self.call(*inputs), ()
        leaves = [x.detach().requires_grad_(w) for x, w in zip(inputs, run.wants, strict=True)]
        storages: dict[int, int] = {}
        known = {p.untyped_storage().data_ptr() for p in self.trained.values()}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        ):
            y = self.call(*leaves)
        return y.detach(), (_Graph(leaves, y, sum(storages.values())),)

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Ask autograd for the gradients."""
        graph = kept[0]
        assert isinstance(graph, _Graph)
        wanted = [x for x, w in zip(graph.inputs, run.wants, strict=True) if w]
        found = torch.autograd.grad(
            graph.output, [*wanted, *self.trained.values()], grad, allow_unused=True
        )
        for name, value in zip(self.trained, found[len(wanted) :], strict=True):
            if value is not None:
                run.collect(name, value.clone())  # it may be the gradient that others hold
        given = iter(found)
        return tuple(next(given) if w else None for w in run.wants)
