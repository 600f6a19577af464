"""What a tape knows: from a layer or a call in a traced network to an operation.

Everything that is not here is :class:`Unknown`, with a reason for people.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import CoreLayer
from fleet.adapt.fold import ChannelAffine
from fleet.adapt.lean.convolution import Convolve
from fleet.adapt.lean.layers import Affine, Multiply, Trained
from fleet.adapt.lean.op import Op
from fleet.adapt.lean.ops import (
    Add,
    Clamp,
    Concatenate,
    Dropout,
    Mean,
    Pad,
    Permute,
    Reshape,
    Transposed,
)
from fleet.adapt.lean.pooling import LARGEST_WINDOW, MaxPool

__all__ = ["CALLS", "Unknown", "of_module"]

# Entry name of a parameter, empty while it is frozen.
NameOf = Callable[[torch.Tensor | None], str]


class Unknown(Exception):
    """A tape does not know this layer or call; the message says why."""


def of_module(module: nn.Module, name_of: NameOf) -> Op | None:
    """Return the operation of a layer, None where the layer does nothing.

    Args:
        module: The layer; a subclass may have another forward, so types must match exactly.
        name_of: Entry name of a parameter.

    Raises:
        Unknown: When a tape does not know it.
    """
    if type(module) in (nn.Identity,):
        return None
    core = module if isinstance(module, CoreLayer) else None
    layer = module if core is None else core.layer
    if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear):
        trained = Trained(
            name_of(core.core if core is not None else None),
            name_of(layer.get_parameter("weight")),
            name_of(getattr(layer, "bias", None)),
        )
        if isinstance(layer, nn.Linear):
            return Multiply(layer, core, trained)
        return Convolve(layer, core, _padding(layer), trained)
    if isinstance(layer, ChannelAffine):
        return Affine(layer, name_of(layer.scale), name_of(layer.shift))
    make = _MODULES.get(type(layer))
    if make is None:
        raise Unknown(f"no lean form of {type(layer).__name__}")
    return make(layer)


def _padding(layer: Any) -> tuple[int, ...]:
    """Return the zeros on either side by dimension."""
    if layer.padding_mode != "zeros":
        raise Unknown(f"padding mode {layer.padding_mode!r}, not zeros")
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding == "same":
        both = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(amount % 2 for amount in both):
            raise Unknown("'same' padding of an even kernel is uneven")
        return tuple(amount // 2 for amount in both)
    return tuple(layer.padding)


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _max_pool(
    dims: int,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Op:
    kernel = _tuple(kernel_size, dims)
    if return_indices:
        raise Unknown("max-pooling that returns its indices")
    if torch.Size(kernel).numel() > LARGEST_WINDOW:
        raise Unknown(f"a max-pooling window of more than {LARGEST_WINDOW} entries")
    step = kernel if stride is None or stride == [] else _tuple(stride, dims)
    return MaxPool(kernel, step, _tuple(padding, dims), _tuple(dilation, dims), ceil_mode)


def _pool_module(dims: int, m: Any) -> Op:
    given = (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)
    return _max_pool(dims, *given)


def _adaptive(dims: int, output_size: Any, apply: Callable[[torch.Tensor], torch.Tensor]) -> Op:
    if _tuple(output_size, dims) == (1,) * dims:
        return Mean(tuple(range(-dims, 0)), keepdim=True)
    return Transposed(apply)


def _flatten(start_dim: int = 0, end_dim: int = -1) -> Op:
    if start_dim == 0:
        raise Unknown("flattening the batch")
    return Reshape(partial(torch.flatten, start_dim=start_dim, end_dim=end_dim))


def _mean(dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Op:
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    if dtype is not None or not dims or 0 in dims:
        raise Unknown("a mean over the batch or in another dtype")
    return Mean(dims, keepdim)


def _clamp(min: Any = None, max: Any = None) -> Op:
    bounds = [b for b in (min, max) if b is not None]
    if not bounds or not all(isinstance(b, int | float) for b in bounds):
        raise Unknown("a clamp whose bounds are not numbers")
    return Clamp(min, max, closed=True)


def _add(other: Any = None, alpha: Any = 1) -> Op:
    if alpha != 1:
        raise Unknown("a scaled sum")
    return Add()


def _cat(dim: int = 0) -> Op:
    if dim == 0:
        raise Unknown("concatenating batches")
    return Concatenate(dim)


def _pad(pad: Any, mode: str = "constant", value: Any = None) -> Op:
    if mode != "constant" or not all(isinstance(amount, int) for amount in pad):
        raise Unknown(f"padding of mode {mode!r}")
    return Pad(tuple(pad), float(value or 0.0))


def _dimension(change: Callable[..., torch.Tensor], dim: Any = None) -> Op:
    if not isinstance(dim, int) or dim == 0:
        raise Unknown("a change of the batch dimension")
    return Reshape(partial(change, dim=dim))


def _permute(*dims: Any) -> Op:
    order = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return Permute(lambda count: tuple(int(dim) % count for dim in order))


def _transpose(dim0: int, dim1: int) -> Op:
    def order(count: int) -> tuple[int, ...]:
        dims = list(range(count))
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
        return tuple(dims)

    return Permute(order)


def _functional_dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> Op | None:
    if training:
        raise Unknown("dropout that is always on")
    return None


_MODULES: Mapping[type[nn.Module], Callable[[Any], Op]] = {
    nn.ReLU: lambda m: Clamp(0.0, None),
    nn.ReLU6: lambda m: Clamp(0.0, 6.0),
    nn.Hardtanh: lambda m: Clamp(m.min_val, m.max_val),
    nn.Dropout: lambda m: Dropout(m.p),
    nn.Flatten: lambda m: _flatten(m.start_dim, m.end_dim),
    nn.ConstantPad1d: lambda m: Pad(tuple(m.padding), m.value),
    nn.ConstantPad2d: lambda m: Pad(tuple(m.padding), m.value),
    nn.ZeroPad1d: lambda m: Pad(tuple(m.padding), 0.0),
    nn.ZeroPad2d: lambda m: Pad(tuple(m.padding), 0.0),
    nn.MaxPool1d: partial(_pool_module, 1),
    nn.MaxPool2d: partial(_pool_module, 2),
    nn.AvgPool1d: Transposed,
    nn.AvgPool2d: Transposed,
    nn.AdaptiveAvgPool1d: lambda m: _adaptive(1, m.output_size, m),
    nn.AdaptiveAvgPool2d: lambda m: _adaptive(2, m.output_size, m),
}

_RELU: Callable[..., Op] = lambda inplace=False: Clamp(0.0, None)  # noqa: E731

# Functions and methods; each gets the call's arguments after its tensors.
CALLS: Mapping[Any, Callable[..., Op | None]] = {
    **dict.fromkeys((functional.relu, torch.relu, "relu"), _RELU),
    functional.relu6: lambda inplace=False: Clamp(0.0, 6.0),
    functional.hardtanh: lambda min_val=-1.0, max_val=1.0, inplace=False: Clamp(min_val, max_val),
    **dict.fromkeys((torch.clamp, "clamp"), _clamp),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add"), _add),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.squeeze, "squeeze"), partial(_dimension, torch.squeeze)),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), partial(_dimension, torch.unsqueeze)),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys((functional.max_pool1d, torch.max_pool1d), partial(_max_pool, 1)),
    **dict.fromkeys((functional.max_pool2d, torch.max_pool2d), partial(_max_pool, 2)),
    functional.adaptive_avg_pool1d: lambda output_size: _adaptive(
        1, output_size, partial(functional.adaptive_avg_pool1d, output_size=output_size)
    ),
    functional.adaptive_avg_pool2d: lambda output_size: _adaptive(
        2, output_size, partial(functional.adaptive_avg_pool2d, output_size=output_size)
    ),
    functional.avg_pool1d: lambda *a, **k: Transposed(lambda x: functional.avg_pool1d(x, *a, **k)),
    functional.avg_pool2d: lambda *a, **k: Transposed(lambda x: functional.avg_pool2d(x, *a, **k)),
    functional.pad: _pad,
    functional.dropout: _functional_dropout,
    "contiguous": lambda: None,
}
