"""LoRA-C: one low-rank product per convolution layer (Ding et al., arXiv 2410.16954).

The update of a kernel ``(O, I, k1, k2)`` is ``ΔK = α/r · reshape(B·A)`` with ``A (r, k1·I)`` random
and ``B (k2·O, r)`` zero, both trained; a 1-D kernel has ``k2 = 1``. The matrix ``(k2·O, k1·I)`` is
read row by row into ``(O, I, k1, k2)``, as the authors' code does: output channel o takes the rows
``o·k2`` to ``o·k2 + k2 - 1``, and input channel and taps run on through them. Their code multiplies
the rank by k as well; r here is the paper's, the rank of the product.

For 1-D kernels ΔK is that of LoRA in HF PEFT's form, so the two differ there in how A starts and in
cost: this one convolves once, with the moved kernel. Not linear in what is trained. The paper says
that A starts Gaussian; that its variance is one over the fan-in ``k1·I`` is ours.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from fleet.errors import ModelError
from fleet.peft.lora import Branched, ConvolutionLayer, KernelBranch, with_branches
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = ["LoRACConvolution", "attach_lora_c", "lora_c"]


class LoRACConvolution(KernelBranch):
    """A frozen convolution whose kernel is moved by one low-rank matrix product.

    Args:
        layer: ``nn.Conv1d`` or ``nn.Conv2d`` with one group.
        rank: r.
        alpha: α; the product is scaled by ``α/r``.
        generator: Source of the initial A; the global one by default.

    Raises:
        ModelError: ``lora-groups``, ``rank-too-small``; ``lora-c-kernel`` for 3-D kernels.
    """

    title = "LoRA-C"

    def __init__(
        self,
        layer: ConvolutionLayer,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(layer, rank, alpha)
        taps = layer.weight.shape[2:]
        if len(taps) > 2:
            raise ModelError(
                "lora-c-kernel",
                f"LoRA-C is defined for kernels of one or two dimensions, not {len(taps)}",
            )
        k1, k2 = taps[0], taps[1] if len(taps) == 2 else 1
        fan_in = k1 * layer.in_channels
        down = torch.empty(rank, fan_in)
        nn.init.normal_(down, std=1 / math.sqrt(fan_in), generator=generator)
        self.down = nn.Parameter(down.to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(k2 * layer.out_channels, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output ``(batch, O, ...)`` with the moved kernel."""
        out: torch.Tensor = self.layer._conv_forward(x, self.kernel(), self.layer.bias)
        return out

    def delta(self) -> torch.Tensor:
        """Return ``ΔK (O, I, *k)``."""
        return self.scale * torch.matmul(self.up, self.down).reshape(self.layer.weight.shape)

    def kernel(self) -> torch.Tensor:
        """Return ``K0 + ΔK (O, I, *k)``."""
        return self.layer.weight + self.delta()


def attach_lora_c(
    network: nn.Module, rank: int, *, seed: int, alpha: float | None = None
) -> nn.Module:
    """Copy a network and put LoRA-C on every adaptable convolution; the rest is frozen.

    Args:
        network: Folded network; not changed.
        rank: r of every layer.
        seed: Of the initial A.
        alpha: α; r by default, so that the product is not scaled.

    Raises:
        ModelError: ``lora-groups`` for grouped convolutions, ``lora-c-kernel`` for 3-D ones,
            ``rank-too-small``, ``nothing-to-train``.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled = float(rank if alpha is None else alpha)
    return with_branches(network, lambda layer: LoRACConvolution(layer, rank, scaled, generator))


def _attach(start: Start) -> Tuned:
    return Branched(attach_lora_c(start.folded, start.rank, seed=start.seed))


lora_c = Tuner(
    name="lora-c",
    summary="one low-rank matrix product per convolution layer; the rest frozen",
    attach=_attach,
    ranked=True,
)
