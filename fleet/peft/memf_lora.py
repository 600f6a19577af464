"""MemFLoRA's geometry: a frozen random 1×1 down to r channels, a trained k-tap convolution up.

    y = conv(x, K0) + s ⊙ conv(P·x, U)        ΔK[o, i, k] = s[o] · Σ_r U[o, r, k] · P[r, i]

(MemFLoRA, arXiv 2610.08669.) P ``(r, I/g)`` is random and never trained; U ``(O, r, *k)`` starts at
zero and is all that is trained, ``r·O·Πk`` entries per layer: Πk times a core's. A step keeps the r
channels of ``P·x`` instead of x. There is no alpha.

The paper's branch joins the raw convolution *before* its batch norm in evaluation mode, so that it
is scaled by ``γ/√(var + ε)`` per output channel. Folding has moved that scale into the kernel; here
it is s, read off as the ratio of the folded filter to the raw one (1 where there is no batch norm,
or where the raw filter is zero). U could absorb s, and reaches the same kernels, but its step sizes
would be others.

What P is drawn from is ours: normal with variance ``g/I``, from a seed named after the layer alone.
So all devices share it whatever their own seed; ΔK is linear in U, and averaging U is averaging
kernels. Groups share one P, as a ``tt`` or ``random`` frame does. The paper's bit-packed ReLU mask
is about memory, changes no number, and is not here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fleet.peft.delta import Branch, Branched, ConvLayer, replace_layers
from fleet.peft.tuner import Start, Tuned, Tuner
from fleet.seeds import generator

__all__ = ["MemFLoRABranch", "memf_lora"]


class MemFLoRABranch(Branch):
    """A frozen convolution beside a frozen 1×1 down and a trained k-tap up.

    Args:
        layer: The folded convolution; its stride, padding and groups are the up's as well.
        down: ``P (r, I/g)``, shared by all groups.
        scale: ``s (O,)``, what the batch norm multiplies an output by.
    """

    down: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: ConvLayer, down: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__(layer)
        weight = layer.weight
        self.register_buffer("down", down.to(weight.dtype))
        self.register_buffer("scale", scale.to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1)))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], len(down), *weight.shape[2:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense output, moved by the branch.

        The branch runs beside the dense convolution. Fused, its gradient would be a dense kernel's,
        and all input channels would be kept for it.
        """
        batch, _, *positions = x.shape
        groups = self.layer.groups
        # Per position and without a bias, so the layer's padding may come after it.
        narrow = torch.matmul(self.down, x.reshape(batch, groups, self.down.shape[1], -1))
        narrow = narrow.reshape(batch, groups * len(self.down), *positions)
        wide: torch.Tensor = self.layer._conv_forward(narrow, self.scale * self.up, None)
        out: torch.Tensor = self.layer(x) + wide
        return out

    def delta(self) -> torch.Tensor:
        """Return ``ΔK (O, I/g, *k)``."""
        return self.scale * torch.einsum("or...,ri->oi...", self.up, self.down)


def _batch_norm_scale(folded: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
    """Return ``s (O,)`` float64 with ``folded = s ⊙ raw``, by least squares per filter."""
    exact, before = folded.detach().double().flatten(1), raw.detach().double().flatten(1)
    energy = before.square().sum(dim=1)
    ratio = (exact * before).sum(dim=1) / energy.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(energy > 0, ratio, torch.ones_like(ratio))


def _attach(start: Start) -> Tuned:
    def make(name: str, layer: ConvLayer) -> nn.Module:
        inputs = layer.weight.shape[1]
        random = generator(0, 0, name, "memf-lora down").normal(size=(start.rank, inputs))
        # Rounded to float32 first, so that every dtype computes with the same P.
        down = torch.from_numpy((random / np.sqrt(inputs)).astype(np.float32))
        raw = start.raw.get_parameter(f"{name}.weight")
        return MemFLoRABranch(layer, down, _batch_norm_scale(layer.weight, raw))

    return Branched(replace_layers(start, make))


memf_lora = Tuner(
    name="memf-lora",
    summary="MemFLoRA: frozen random 1×1 down to r channels, trained k-tap up; merges",
    attach=_attach,
    default_rate=1e-3,
    exact=True,
    ranked=True,
)
