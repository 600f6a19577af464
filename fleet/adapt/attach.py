"""Attach: a folded network whose trainable parameters are exactly a core state's entries.

An adapted layer computes ``y = u + C·z + b`` with ``u = conv(x, K0)``. In the ``svd`` frame the
bottleneck is read off the frozen output, ``z = M·u`` (no second convolution); in the ``tt`` frame
it is an r-channel convolution of its own, ``z = conv(x, S)``. Training always runs on the immutable
``K0`` with the core starting at the release's; what a device sends is the difference.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fleet.adapt.fold import Convolution
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.state import CORE_SUFFIX, CoreState, Layout
from fleet.errors import MismatchError

# Windows per forward pass while frames are calibrated.
CALIBRATION_BATCH = 256
# A direction is scaled as if its RMS were at least this fraction of its layer's largest.
QUIET_DIRECTION = 0.05

try:
    from threadpoolctl import threadpool_limits
except ModuleNotFoundError:  # a device may come without it
    threadpool_limits = None

__all__ = ["Attached", "CoreLayer", "adaptable_layers", "attach", "make_frames"]


class CoreLayer(nn.Module):
    """A frozen Conv1d, Conv2d or Linear with a trainable output-side core beside it.

    Args:
        layer: The dense layer; its parameters are not trained.
        frame: Its frame.
        core: ``C (O, r)``, the start of the trainable parameter.
    """

    mixing: torch.Tensor
    suffix: torch.Tensor

    def __init__(self, layer: nn.Module, frame: Frame, core: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.kind = frame.kind
        self.groups = frame.groups
        self.is_linear = isinstance(layer, nn.Linear)
        self.core = nn.Parameter(core)
        weight = layer.get_parameter("weight")
        if frame.kind == "svd":
            # A copy: the frame is shared by every attached network and must not follow one of them.
            self.register_buffer("mixing", torch.tensor(frame.array, dtype=weight.dtype))
        else:
            suffix = torch.tensor(frame.array, dtype=weight.dtype)
            stacked = suffix.expand(self.groups, *suffix.shape).reshape(-1, *suffix.shape[1:])
            self.register_buffer("suffix", stacked.contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense layer returns, moved by the core path."""
        weight = self.layer.get_parameter("weight")
        bias: torch.Tensor | None = getattr(self.layer, "bias", None)
        u = _apply(self.layer, x, weight)
        rows = self._by_group(u)
        cores = self.core.view(self.groups, rows.shape[2], -1)
        y = (rows + torch.matmul(cores, self.bottleneck(x, rows))).reshape(u.shape)
        if bias is None:
            return y
        return y + (bias if self.is_linear else bias.view(-1, *(1,) * (y.dim() - 2)))

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense output without bias ``(batch, groups, O/groups, positions)``."""
        weight = self.layer.get_parameter("weight")
        return self._by_group(_apply(self.layer, x, weight))

    def bottleneck(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return z ``(batch, groups, r, positions)``, what the core multiplies.

        Args:
            x: The layer's input.
            rows: Its dense output without bias ``(batch, groups, O/groups, positions)``.
        """
        if self.kind == "svd":
            return torch.matmul(self.mixing, rows)
        return self._by_group(_apply(self.layer, x, self.suffix))

    def _by_group(self, u: torch.Tensor) -> torch.Tensor:
        """View channels by group: ``(batch, groups, channels/groups, positions)``."""
        if self.is_linear:
            return u.reshape(-1, 1, u.shape[-1], 1)
        return u.reshape(u.shape[0], self.groups, u.shape[1] // self.groups, -1)


def _apply(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Run ``layer`` without its bias and with another kernel; strides and padding are its own."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    assert isinstance(layer, Convolution)
    out: torch.Tensor = layer._conv_forward(x, weight, None)
    return out


@dataclass(frozen=True, eq=False)
class Attached:
    """A network ready to train.

    Args:
        module: The folded network in evaluation mode, adapted layers replaced.
        parameters: The only parameters that require gradients, by entry name of the state.
        origin: The base's value of each dense entry; cores start from zero.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    origin: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def state(self) -> CoreState:
        """Return where the parameters are now, relative to the base."""
        arrays = {}
        for name, parameter in self.parameters.items():
            value = parameter.detach()
            if name in self.origin:
                value = value - self.origin[name].to(value)
            arrays[name] = value.cpu().numpy()
        return CoreState.of(arrays)

    def detach(self) -> nn.Module:
        """Return the folded network with its dense layers back in place, unmoved."""
        for name, module in list(self.module.named_modules()):
            if isinstance(module, CoreLayer):
                _set(self.module, name, module.layer)
        return self.module


def attach(
    folded: nn.Module, frames: Mapping[str, Frame], state: CoreState, *, dtype: torch.dtype
) -> Attached:
    """Copy a folded network and make exactly the entries of ``state`` trainable.

    Args:
        folded: Folded network; not changed.
        frames: Frame by layer name; at least those that the state's cores name.
        state: Where training starts. ``LAYER.core`` entries are cores, others are dense deltas of
            the parameter that they name.
        dtype: Dtype to compute in; float64 serves as an oracle.

    Raises:
        MismatchError: ``unknown-entry`` when an entry names no layer or parameter, ``core-shape``
            when a core does not fit its layer.
        FrameError: ``rank-too-large`` or ``frame-not-nested`` when it does not fit its frame.
    """
    module = copy.deepcopy(folded).to(dtype).requires_grad_(False).eval()
    dense = dict(module.named_parameters())
    parameters: dict[str, nn.Parameter] = {}
    origin: dict[str, torch.Tensor] = {}
    for name, array in state.arrays.items():
        value = torch.from_numpy(np.array(array)).to(dtype)
        layer = name.removesuffix(CORE_SUFFIX)
        if name.endswith(CORE_SUFFIX) and layer in frames:
            outputs = dense[f"{layer}.weight"].shape[0]
            if array.ndim != 2 or array.shape[0] != outputs:
                raise MismatchError(
                    "core-shape",
                    f"the core {name} of a layer with {outputs} outputs is (outputs, rank), "
                    f"not {array.shape}",
                )
            frame = frames[layer].truncated(array.shape[1])
            adapted = CoreLayer(module.get_submodule(layer), frame, value)
            _set(module, layer, adapted)
            parameters[name] = adapted.core
        elif name in dense and dense[name].shape == value.shape:
            dense[name].data.add_(value)
            dense[name].requires_grad_(True)
            parameters[name] = dense[name]
            origin[name] = folded.get_parameter(name).detach()
        else:
            raise MismatchError(
                "unknown-entry",
                f"the state's entry {name} {array.shape} fits no layer of this base",
            )
    return Attached(module, parameters, origin)


def adaptable_layers(folded: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Find what can carry a core.

    Returns:
        Layers by name (every convolution, 1×1 shortcuts included), and the reason for each
        convolution that is left out: a depthwise kernel's core is only a gain per channel.
    """
    found: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    for name, module in folded.named_modules():
        if not isinstance(module, Convolution):
            continue
        if module.groups > 1 and module.in_channels == module.groups:
            left[name] = "depthwise: its core degenerates to one gain per channel"
        else:
            found[name] = module
    return found, left


def make_frames(
    folded: nn.Module, kind: FrameKind, rank: int, windows: torch.Tensor | None = None
) -> dict[str, Frame]:
    """Make the frames of all adaptable layers from the folded kernels, all of one rank.

    Args:
        folded: Folded network.
        kind: ``svd``, ``tt`` or ``random``.
        rank: Columns of each core.
        windows: Source windows ``(n, channels, window)``. Given these, every direction is scaled so
            that its bottleneck channel has unit RMS on them; then one learning rate suits all
            layers, kinds and ranks. Without them the frames are as the kernels give them.
    """
    layers, _ = adaptable_layers(folded)
    with single_thread():
        frames = {
            name: make_frame(
                layer.get_parameter("weight").detach().numpy(),
                kind,
                rank,
                groups=int(layer.groups),  # type: ignore[arg-type]
                layer=name,
            )
            for name, layer in layers.items()
        }
    return frames if windows is None else _calibrated(folded, frames, windows)


def _calibrated(
    folded: nn.Module, frames: Mapping[str, Frame], windows: torch.Tensor
) -> dict[str, Frame]:
    """Scale each direction to a bottleneck channel of unit RMS on ``windows``."""
    outputs = {name: folded.get_submodule(name).get_parameter("weight").shape[0] for name in frames}
    shapes = {name + CORE_SUFFIX: (outputs[name], f.rank) for name, f in frames.items()}
    zero = CoreState.zero(Layout.of(shapes))
    attached = attach(folded, frames, zero, dtype=torch.float32)
    squares = {name: _Square() for name in frames}
    for name, square in squares.items():
        attached.module.get_submodule(name).register_forward_hook(square)
    with torch.inference_mode(), single_thread():
        for start in range(0, len(windows), CALIBRATION_BATCH):
            attached.module(windows[start : start + CALIBRATION_BATCH])
    return {name: frame.scaled(squares[name].factors(frame)) for name, frame in frames.items()}


class _Square:
    """A forward hook that accumulates the mean square of a core layer's bottleneck, in float64."""

    def __init__(self) -> None:
        self.total = np.zeros(())
        self.count = 0

    def __call__(self, layer: CoreLayer, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        z = layer.bottleneck(inputs[0], layer.rows(inputs[0])).double()
        self.total = self.total + z.square().sum(dim=(0, 3)).numpy()
        self.count += z.shape[0] * z.shape[3]

    def factors(self, frame: Frame) -> NDArray[np.float64]:
        """Return 1/RMS by direction; directions that hardly respond are not blown up."""
        mean: NDArray[np.float64] = self.total / max(self.count, 1)
        if frame.kind != "svd":
            mean = mean.mean(axis=0)
        rms = np.sqrt(mean)
        largest = float(rms.max(initial=0.0))
        return 1.0 / np.maximum(rms, QUIET_DIRECTION * largest) if largest else np.ones_like(rms)


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one thread: nets this small lose time on more, and sums then keep one order.

    Covers torch, and numpy's linear algebra where threadpoolctl is installed: on busy cores a small
    SVD on all of them takes a hundred times as long as on one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with nullcontext() if threadpool_limits is None else threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _set(model: nn.Module, name: str, module: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
