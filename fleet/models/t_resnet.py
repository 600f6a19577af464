"""T-ResNet: the temporal residual network of LoRA-Edge (arXiv 2511.03765, Sec. IV).

After Wang, Yan and Oates, "Time series classification from scratch" (2017), with a batch norm on
each block's input. 560,915 parameters at 97 channels and 17 classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from fleet.models.config import ModelConfig

__all__ = ["TResNet"]

WIDTHS = (64, 128, 128)


class ResidualBlock(nn.Module):
    """Batch norm, then k8, k5 and k3 convolutions beside a shortcut from the normed input.

    Args:
        inputs: Channels in.
        outputs: Channels out; where they differ the shortcut is a 1×1 convolution.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm1d(inputs)
        # 'same' padding of an even kernel is uneven, so it is a layer of its own.
        self.pad1 = nn.ConstantPad1d((3, 4), 0.0)
        self.conv1 = nn.Conv1d(inputs, outputs, 8, bias=False)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 5, padding=2, bias=False)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.conv3 = nn.Conv1d(outputs, outputs, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm1d(outputs)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1, bias=False)
        )
        self.norm_shortcut = nn.BatchNorm1d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, outputs, time)`` of ``(batch, inputs, time)``."""
        x = self.norm_in(x)
        y = self.relu(self.norm1(self.conv1(self.pad1(x))))
        y = self.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        out: torch.Tensor = self.relu(y + self.norm_shortcut(self.shortcut(x)))
        return out


class TResNet(nn.Module):
    """Three residual blocks of width 64, 128 and 128, global average pooling, a linear head.

    Input ``(batch, channels, window)`` float, output logits ``(batch, classes)``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = (config.channels, *WIDTHS)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(WIDTHS[-1], config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of windows ``(batch, channels, window)``."""
        logits: torch.Tensor = self.head(self.blocks(x).mean(dim=-1))
        return logits
