"""Networks to load parameters into, made once per architecture, that other threads cannot disturb.

Folding follows a network symbolically, and for that long ``torch.fx`` replaces
``nn.Module.__call__`` for the whole process: a network that another thread runs meanwhile fails.
An agent folds and traces when it trains, beside threads that infer. So what is served is folded
once, copied for every swap, and its layers call their ``forward`` themselves.
"""

from __future__ import annotations

import copy
import threading
from functools import lru_cache
from typing import Any

from torch import nn

from fleet.adapt.fold import fold
from fleet.models.config import ModelConfig
from fleet.models.registry import build

__all__ = ["direct", "folded_skeleton"]

_folding = threading.Lock()
_direct_classes: dict[type[nn.Module], type[nn.Module]] = {}  # one per kind of layer


def folded_skeleton(config: ModelConfig) -> nn.Module:
    """Return a folded network of one's own, whose parameters are yet to be loaded.

    Raises:
        ModelError: ``unknown-model``.
    """
    with _folding:
        return copy.deepcopy(_skeleton(config))


def direct(network: nn.Module) -> nn.Module:
    """Make every layer call its ``forward`` without ``nn.Module.__call__``, in place.

    Hooks no longer run; what is computed is the same.
    """
    for module in network.modules():
        module.__class__ = _direct_class(type(module))
    return network


@lru_cache(maxsize=4)
def _skeleton(config: ModelConfig) -> nn.Module:
    return direct(fold(build(config)).requires_grad_(False))


def _direct_class(kind: type[nn.Module]) -> type[nn.Module]:
    if "_calls_directly" in vars(kind):
        return kind
    if kind in _direct_classes:
        return _direct_classes[kind]

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    content = {"__call__": call, "__module__": kind.__module__, "_calls_directly": True}
    return _direct_classes.setdefault(kind, type(kind.__name__, (kind,), content))
