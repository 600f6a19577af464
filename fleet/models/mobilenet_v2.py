"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, Table 2) for sensor windows, in two forms.

``mobilenetv2-1d``
    Every convolution runs over time on ``(channels, time)``.
``mobilenetv2-2d``
    LoRA-Edge's form (arXiv 2511.03765, Sec. IV): a window becomes an image of ``time × 1`` pixels
    with one plane per sensor channel, and every 3×3 kernel keeps its size (padding 1). On width 1
    the two outer columns of a kernel meet padding alone: they are counted and sent, but never act.

Widths, expansion, repeats and strides are the original's, width multiplier 1. Its five strides of 2
are kept for short windows too: with kernel 3 and padding 1 each gives ``⌈time/2⌉``, so
``⌈time/32⌉ ≥ 1`` positions reach the global average pool (128 samples: 4; 100: 4; 60: 2). No window
vanishes, so no stride had to change. There is no dropout before the head. Initial weights are
PyTorch's.

2,196,140 parameters (1-D) and 2,240,108 (2-D) at 6 channels and 12 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fleet.models.config import ModelConfig

__all__ = ["MobileNetV2", "mobilenet_v2_1d", "mobilenet_v2_2d"]

STEM = 32
LAST = 1280
# Expansion t, channels c, repeats n, stride s of the first repeat.
TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
_NORMS: dict[int, Callable[[int], nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


class ConvNorm(nn.Sequential):
    """A convolution without bias that keeps ``⌈time/stride⌉``, its batch norm, and ReLU6 if asked.

    Args:
        dims: 1 or 2.
        inputs: Channels in.
        outputs: Channels out.
        kernel: Odd kernel size in every dimension.
        stride: Stride in every dimension.
        groups: Groups of the convolution.
        active: Whether ReLU6 follows.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        given: dict[str, Any] = {"stride": stride, "padding": kernel // 2, "groups": groups}
        super().__init__()
        self.conv = _CONVOLUTIONS[dims](inputs, outputs, kernel, bias=False, **given)
        self.norm = _NORMS[dims](outputs)
        if active:
            self.relu = nn.ReLU6()


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise k3, linear 1×1 projection; a shortcut where the shape stays.

    Args:
        dims: 1 or 2.
        inputs: Channels in.
        outputs: Channels out.
        stride: Stride of the depthwise convolution.
        expansion: Channels of the depthwise convolution by channel in; 1 leaves the first 1×1 out.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Identity() if expansion == 1 else ConvNorm(dims, inputs, wide, 1)
        self.depthwise = ConvNorm(dims, wide, wide, 3, stride=stride, groups=wide)
        self.project = ConvNorm(dims, wide, outputs, 1, active=False)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, outputs, ...)`` of ``(batch, inputs, ...)``."""
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """The stem, 17 inverted residuals, a 1×1 convolution, global average pooling, a linear head.

    Input ``(batch, channels, window)`` float in either form, output logits ``(batch, classes)``.

    Args:
        config: Sizes; the network takes windows of any length.
        dims: 1, or 2 for windows as images of ``time × 1`` pixels.
    """

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.stem = ConvNorm(dims, config.channels, STEM, 3, stride=2)
        blocks: list[nn.Module] = []
        width = STEM
        for expansion, outputs, repeats, first_stride in TABLE:
            for repeat in range(repeats):
                stride = 1 if repeat else first_stride
                blocks.append(InvertedResidual(dims, width, outputs, stride, expansion))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvNorm(dims, width, LAST, 1)
        self.head = nn.Linear(LAST, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of windows ``(batch, channels, window)``."""
        if self.dims == 2:
            x = x.unsqueeze(-1)
        x = self.last(self.blocks(self.stem(x)))
        logits: torch.Tensor = self.head(x.flatten(2).mean(dim=-1))
        return logits


def mobilenet_v2_1d(config: ModelConfig) -> MobileNetV2:
    """Build the one-dimensional form."""
    return MobileNetV2(config, 1)


def mobilenet_v2_2d(config: ModelConfig) -> MobileNetV2:
    """Build LoRA-Edge's two-dimensional form."""
    return MobileNetV2(config, 2)
