"""A small 1-D CNN for quick runs: three convolutions, 126 thousand parameters at 6 channels."""

from __future__ import annotations

import torch
from torch import nn

from fleet.models.config import ModelConfig

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """conv k5 64-128-128 without bias, each with batch norm and ReLU; max-pool 2 after two.

    Input ``(batch, channels, window)`` float, output logits ``(batch, classes)``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.channels, 64, 5, padding=2, bias=False)
        self.norm1 = nn.BatchNorm1d(64)
        self.conv2 = nn.Conv1d(64, 128, 5, padding=2, bias=False)
        self.norm2 = nn.BatchNorm1d(128)
        self.conv3 = nn.Conv1d(128, 128, 5, padding=2, bias=False)
        self.norm3 = nn.BatchNorm1d(128)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool1d(2)
        self.head = nn.Linear(128, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of windows ``(batch, channels, window)``."""
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        x = self.pool(self.relu(self.norm2(self.conv2(x))))
        x = self.relu(self.norm3(self.conv3(x)))
        logits: torch.Tensor = self.head(x.mean(dim=-1))
        return logits
