"""DoRA: magnitude and direction of every output channel apart (Liu et al., arXiv 2402.09353).

``K = m · (K0 + s·B·A) / ‖K0 + s·B·A‖`` with the norm of each output channel over all its inputs and
taps, ``m (O,)`` trained from ``‖K0‖``, and ``A``, ``B`` as in LoRA. The norm is a constant in the
backward pass (Sec. 4.3), as in the ``peft`` package, whose convolutional form this is. It starts
as the base: ``B = 0`` makes ``m/‖·‖`` one. Not linear in what is trained.
"""

from __future__ import annotations

import torch
from torch import nn

from fleet.peft.lora import Branched, ConvolutionLayer, LoRAConvolution, with_branches
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = ["DoRAConvolution", "attach_dora", "dora"]


class DoRAConvolution(LoRAConvolution):
    """A frozen convolution with a trained low-rank branch and a trained gain per channel.

    Args:
        layer: Convolution with one group.
        rank: r.
        alpha: α; the branch is scaled by ``α/r``.
        generator: Source of the initial A; the global one by default.
    """

    title = "DoRA"

    def __init__(
        self,
        layer: ConvolutionLayer,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(layer, rank, alpha, generator)
        self.magnitude = nn.Parameter(layer.weight.detach().flatten(1).norm(dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output ``(batch, O, ...)`` of the moved and rescaled kernel."""
        bias = self.layer.bias
        dense: torch.Tensor = self.layer._conv_forward(x, self.layer.weight, None)
        trailing = (1,) * (dense.dim() - 2)
        out = self.gain().view(-1, *trailing) * (dense + self.branch(x))
        return out if bias is None else out + bias.view(-1, *trailing)

    def gain(self) -> torch.Tensor:
        """Return ``m / ‖K0 + ΔK‖ (O,)``; no gradient passes through the norm."""
        with torch.no_grad():
            norm = super().kernel().flatten(1).norm(dim=1)
            # A channel of zeros has magnitude zero, and is to stay zero rather than become 0/0.
            norm = norm.clamp_min(torch.finfo(norm.dtype).tiny)
        gain: torch.Tensor = self.magnitude / norm
        return gain

    def kernel(self) -> torch.Tensor:
        """Return ``m · (K0 + ΔK) / ‖K0 + ΔK‖ (O, I, *k)``."""
        dense = super().kernel()
        return self.gain().view(-1, *(1,) * (dense.dim() - 1)) * dense


def attach_dora(
    network: nn.Module, rank: int, *, seed: int, alpha: float | None = None
) -> nn.Module:
    """Copy a network and put DoRA on every adaptable convolution; the rest is frozen.

    Args:
        network: Folded network; not changed.
        rank: r of every branch.
        seed: Of the initial A.
        alpha: α; r by default, so that the branch is not scaled.

    Raises:
        ModelError: ``lora-groups`` for grouped convolutions, ``rank-too-small``,
            ``nothing-to-train``.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled = float(rank if alpha is None else alpha)
    return with_branches(network, lambda layer: DoRAConvolution(layer, rank, scaled, generator))


def _attach(start: Start) -> Tuned:
    return Branched(attach_dora(start.folded, start.rank, seed=start.seed))


dora = Tuner(
    name="dora",
    summary="LoRA's factors turn each output channel, a trained magnitude scales it",
    attach=_attach,
    ranked=True,
)
