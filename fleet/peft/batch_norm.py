"""BN tuning: the scale γ and shift β of every batch norm, on frozen statistics.

One of LoRA-Edge's comparisons (arXiv 2511.03765); on random features it goes back to Frankle et
al., "Training BatchNorm and only BatchNorm" (arXiv 2003.00152). Batch norms stay in evaluation
mode, so that their running statistics are the base's and one window's output does not depend on
the others in its batch.

Folding makes ``K·γ/σ`` and ``β + (b - μ)·γ/σ`` of a convolution and its norm. With ``K``, ``b``,
``μ`` and ``σ`` frozen both are linear in ``(γ, β)``: averaging γ and β over devices *is* averaging
the kernels that they serve, so the method federates exactly.
"""

from __future__ import annotations

import copy

from torch import nn

from fleet.adapt.fold import BatchNorm, fold
from fleet.errors import ModelError
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = ["BatchNormTuned", "batch_norms", "bn"]


def batch_norms(
    network: nn.Module,
) -> dict[str, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    """Return the batch norms of a network, by name.

    Raises:
        ModelError: ``nothing-to-train`` when there is none, ``norm-without-statistics`` when one
            has no running statistics.
    """
    found = {n: m for n, m in network.named_modules() if isinstance(m, BatchNorm)}
    if not found:
        raise ModelError(
            "nothing-to-train",
            f"{type(network).__name__} has no batch norm",
            "Give the network before it is folded, or choose a method that trains kernels.",
        )
    for name, norm in found.items():
        if not norm.track_running_stats:
            raise ModelError(
                "norm-without-statistics",
                f"the batch norm {name} has no running statistics, so it cannot be frozen",
            )
    return found


class BatchNormTuned(Tuned):
    """A raw network of which γ and β ``(channels,)`` of every batch norm are trained.

    Args:
        raw: Network with its batch norms; not changed.

    Raises:
        ModelError: ``nothing-to-train`` when no batch norm has γ and β.
    """

    def __init__(self, raw: nn.Module) -> None:
        super().__init__(copy.deepcopy(raw).requires_grad_(False).eval())
        for norm in batch_norms(self.module).values():
            norm.requires_grad_(True)
        if not self.trainable():
            raise ModelError(
                "nothing-to-train", f"no batch norm of {type(raw).__name__} has a scale and a shift"
            )

    def merge(self) -> nn.Module:
        """Return the folded network of the trained one."""
        return fold(self.module).requires_grad_(False)


def _attach(start: Start) -> Tuned:
    return BatchNormTuned(start.raw)


bn = Tuner(
    name="bn",
    summary="scale and shift of every batch norm; statistics and kernels frozen",
    attach=_attach,
    exact=True,
)
