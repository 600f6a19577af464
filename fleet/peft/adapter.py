"""Adapter: a residual bottleneck behind every convolution, ``y + up(relu(down(y)))``.

Bottleneck adapters (Houlsby et al., arXiv 1902.00751), as 1×1 convolutions with a residual path
(Rebuffi et al., arXiv 1705.08045) behind a frozen convolution (Conv-Adapter, arXiv 2208.07463).
Down goes to r channels, up starts at zero, so that the start is the base. ``y`` is the *folded*
convolution's output, which is the batch norm's, before the network's own non-linearity.

Ours, because those papers differ: neither 1×1 has a bias, as the folded convolution has one
already; so a layer of O outputs trains ``2·r·O`` entries.

The ReLU between the factors is what makes the method expressive, and why no kernel equals it: it
never merges, costs time at inference for good, and averaging over devices is not exact.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from fleet.errors import ModelError
from fleet.peft.delta import ConvLayer, replace_layers
from fleet.peft.tuner import Start, Tuned, Tuner
from fleet.seeds import derive_seed

__all__ = ["AdaptedConvolution", "Adapter", "adapter"]


class AdaptedConvolution(nn.Module):
    """A frozen convolution with a trained residual bottleneck on its output.

    Args:
        layer: The dense convolution; not trained.
        rank: r, the channels between the two factors.
        seed: Of ``down (r, O)``, uniform within ``±1/√O``; ``up (O, r)`` is zero.
    """

    def __init__(self, layer: ConvLayer, rank: int, seed: int) -> None:
        super().__init__()
        self.layer = layer
        outputs, dtype = layer.out_channels, layer.weight.dtype
        # A generator of its own: attaching must not move the global random state.
        source = torch.Generator().manual_seed(seed)
        bound = 1.0 / math.sqrt(outputs)
        down = torch.empty(rank, outputs).uniform_(-bound, bound, generator=source)
        self.down = nn.Parameter(down.to(dtype))
        self.up = nn.Parameter(torch.zeros(outputs, rank, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution's output ``(batch, O, *positions)``, moved by the bottleneck."""
        y: torch.Tensor = self.layer(x)
        narrow = torch.relu(torch.matmul(self.down, y.flatten(2)))
        return y + torch.matmul(self.up, narrow).view_as(y)


class Adapter(Tuned):
    """A folded network with an adapter behind every convolution."""

    def merge(self) -> nn.Module:
        """Refuse.

        Raises:
            ModelError: ``cannot-merge``, always.
        """
        raise ModelError(
            "cannot-merge",
            "an adapter's ReLU stands between its two factors, so no dense kernel equals it",
            "Serve the trained network itself, or train cores.",
        )

    def served(self) -> nn.Module:
        """Return a frozen copy of the trained network, in evaluation mode, adapters and all."""
        return copy.deepcopy(self.module).requires_grad_(False).eval()


def _attach(start: Start) -> Tuned:
    def make(name: str, layer: ConvLayer) -> nn.Module:
        seed = derive_seed(start.seed, 0, name, "adapter")
        return AdaptedConvolution(layer, start.rank, seed)

    return Adapter(replace_layers(start, make))


adapter = Tuner(
    name="adapter",
    summary="a residual 1×1 bottleneck behind every convolution; does not merge",
    attach=_attach,
    default_rate=1e-3,
    ranked=True,
)
