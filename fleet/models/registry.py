"""The registry that names backbones, and the one function from a config to a model.

A backbone is a module in evaluation order (convolution, then its batch norm, then the
non-linearity) whose last layer is an ``nn.Linear`` called ``head``. Its forward takes windows
``(batch, channels, window)`` and does not branch on their values, so that it can be traced. Add
your own with :func:`register`.

``calanet``
    Nine temporal convolutions, all of which reach the head: concatenating, with a grouped layer.
``mobilenetv2-1d``, ``mobilenetv2-2d``
    Inverted residuals with depthwise convolutions, over time and over images of ``time × 1``.
``small-cnn``
    Three convolutions, for quick runs.
``t-resnet``
    LoRA-Edge's temporal residual network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fleet.errors import ModelError
from fleet.models.calanet import CALANet
from fleet.models.config import ModelConfig
from fleet.models.mobilenet_v2 import mobilenet_v2_1d, mobilenet_v2_2d
from fleet.models.small_cnn import SmallCNN
from fleet.models.t_resnet import TResNet

__all__ = ["HEAD", "build", "names", "register"]

HEAD = "head"

_BACKBONES: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "calanet": CALANet,
    "mobilenetv2-1d": mobilenet_v2_1d,
    "mobilenetv2-2d": mobilenet_v2_2d,
    "small-cnn": SmallCNN,
    "t-resnet": TResNet,
}


def names() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_BACKBONES))


def register(name: str, backbone: Callable[[ModelConfig], nn.Module]) -> None:
    """Add a backbone under a new name.

    Raises:
        ModelError: ``model-exists`` when the name is taken.
    """
    if name in _BACKBONES:
        raise ModelError("model-exists", f"a model named {name!r} is registered already")
    _BACKBONES[name] = backbone


def build(config: ModelConfig, seed: int = 0) -> nn.Module:
    """Build the backbone that ``config`` names, with seeded initial weights (float32, train mode).

    The global random state is left as it was.

    Raises:
        ModelError: ``unknown-model``.

    >>> model = build(ModelConfig(name="small-cnn", channels=6, classes=6, window=128))
    >>> sum(p.numel() for p in model.parameters())
    126214
    """
    if config.name not in _BACKBONES:
        raise ModelError(
            "unknown-model",
            f"there is no model named {config.name!r}; known: {', '.join(names())}",
            "Choose one with --model.",
        )
    # torch.manual_seed would reseed every accelerator as well.
    source = torch.default_generator
    before = source.get_state()
    try:
        source.manual_seed(seed)
        return _BACKBONES[config.name](config)
    finally:
        source.set_state(before)
