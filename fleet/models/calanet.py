"""CALANet: all-layer aggregation at the cost of a plain CNN.

Park, Kim et al., "CALANet: Cheap All-Layer Aggregation for Human Activity Recognition", NeurIPS
2024. An independent implementation after public summaries of the paper, and not after the authors'
code, whose licence differs.

From the paper:

- *every* layer of a temporal CNN reaches the classifier, not the last one alone;
- the means are learnable channel-wise transformation matrices (LCTM) and a scalable layer
  aggregation pool (SLAP);
- the whole costs what a conventional CNN does, whatever its depth;
- a grouped temporal convolution over the full length summarises the layers, and the summaries are
  concatenated for the classifier.

Ours, because the summaries leave it open: that an LCTM is a 1×1 convolution to a few channels, one
per layer, and that the pool is an average pool to the last layer's length, *before* the LCTM, so
that an LCTM's cost does not grow with its layer's length; nine layers of kernel 5 in three stages
of width 64, 128 and 192; max-pooling by 2 at the end of the first two stages; 16 channels per
layer after the LCTM and 16 in its summary; batch norm and ReLU behind every convolution; one
convolution with a group per layer for all full-length summaries. Scores of this network are
therefore not the paper's.

835,980 parameters at 6 channels, 128 samples and 12 classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from fleet.models.config import ModelConfig

__all__ = ["CALANet"]

WIDTHS = (64, 64, 64, 128, 128, 128, 192, 192, 192)
KERNEL = 5
# Layers, from 0, that end in max-pooling by 2.
HALVING = (2, 5)
# Channels per layer after its LCTM, and of its summary.
TRANSFORMED = 16
SUMMARY = 16


class TemporalLayer(nn.Sequential):
    """A k5 convolution without bias, batch norm, ReLU, and max-pooling by 2 if asked.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        halves: Whether max-pooling ends the layer.
    """

    def __init__(self, inputs: int, outputs: int, halves: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        self.relu = nn.ReLU()
        if halves:
            self.pool = nn.MaxPool1d(2)


class Aggregation(nn.Sequential):
    """One layer's features, pooled to the last layer's length and brought to a few channels.

    Args:
        inputs: The layer's channels.
        factor: Its length by the last layer's.
    """

    def __init__(self, inputs: int, factor: int) -> None:
        super().__init__()
        self.pool = nn.Identity() if factor == 1 else nn.AvgPool1d(factor)
        self.lctm = nn.Conv1d(inputs, TRANSFORMED, 1, bias=False)
        self.norm = nn.BatchNorm1d(TRANSFORMED)
        self.relu = nn.ReLU()


class CALANet(nn.Module):
    """Nine temporal convolution layers, each of which is summarised for a linear head.

    Input ``(batch, channels, window)`` float, output logits ``(batch, classes)``. The summaries'
    kernel spans ``window // 4`` positions, which is the full length for the configured window. On
    longer windows it slides and its outputs are averaged; shorter ones it cannot take.

    Args:
        config: Sizes; the number of parameters grows with the window.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = pairwise((config.channels, *WIDTHS))
        self.layers = nn.ModuleList(
            TemporalLayer(a, b, index in HALVING) for index, (a, b) in enumerate(widths)
        )
        self.aggregations = nn.ModuleList(
            Aggregation(width, 2 ** sum(index < last for last in HALVING))
            for index, width in enumerate(WIDTHS)
        )
        count, length = len(WIDTHS), config.window // 2 ** len(HALVING)
        self.summary = nn.Conv1d(
            count * TRANSFORMED, count * SUMMARY, length, groups=count, bias=False
        )
        self.norm = nn.BatchNorm1d(count * SUMMARY)
        self.relu = nn.ReLU()
        self.head = nn.Linear(count * SUMMARY, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of windows ``(batch, channels, window)``."""
        gathered = []
        for layer, aggregation in zip(self.layers, self.aggregations, strict=True):
            x = layer(x)
            gathered.append(aggregation(x))
        x = self.relu(self.norm(self.summary(torch.cat(gathered, dim=1))))
        logits: torch.Tensor = self.head(x.mean(dim=-1))
        return logits
