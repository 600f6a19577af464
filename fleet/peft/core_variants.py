"""Ablations of the core adapter that its paper leaves open: another core, another start.

LoRA-Edge (arXiv 2511.03765) trains the output core of a tensor train ``K ≈ G1·G2·…·Gd`` from zero,
beside a kernel that stays. Here, with everything else frozen:

``core-middle``
    δ in the place of the input-channel core: ``ΔK = G1·δ·G3``, ``δ (r, I/g, r)`` from zero.
``core-input``
    δ in the place of the last core: ``ΔK = G1·G2·δ``, ``δ (r, Πk)`` from zero, the time side.
``core-svd-init``
    The output core *with* its SVD value and nothing subtracted: ``ΔK = C·S`` from ``C0·S ≈ K``, so
    the start is not the base (its leading directions are doubled). What throwing G1 away is for.
``core-residual``
    The same start with the kernel made a residual, as PiSSA does (arXiv 2404.02948):
    ``K = (K0 - C0·S) + C·S``. PiSSA trains both factors, so its start matters. With S frozen it is
    the function and gradient of the core from zero, moved by C0: every optimiser that does not look
    at the parameter's value (Adam, momentum SGD; not weight decay) takes the same steps.

Trains are made with :func:`fleet.adapt.frames.tt_svd` from the folded kernel as ``(O, I/g, Πk)``
without modes of width 1, all bonds cut to r or to what the modes allow, in float64 and rounded to
float32. So a 2-D kernel has one spatial mode. A 1×1 kernel is ``(O, I/g)``; it has no middle, and
both variants train its last core ``(r, I/g)``. Grouped kernels have one train over all outputs.
S is that of ``Start.frames``, and C0 the least-squares best ``C`` for ``C·S ≈ K0``, whatever kind
the frame is and however scaled; the rank is then the frame's, and layers without one stay frozen.

Each ΔK is affine in what is trained, so averaging is exact wherever the frozen cores ship with the
base. This bench makes trains anew at each attach, on one machine. Kernels are made whole at each
step: these variants are there for their accuracy, and measure nothing of memory or time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import single_thread
from fleet.adapt.frames import Frame, check_rank, tt_svd
from fleet.errors import FrameError, ModelError
from fleet.peft.delta import Branch, Branched, ConvLayer, replace_layers
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = [
    "OutputBranch",
    "TrainBranch",
    "best_core",
    "core_input",
    "core_middle",
    "core_residual",
    "core_svd_init",
    "train_cores",
]


class TrainBranch(Branch):
    """A convolution moved by a tensor train in which one core is trained, from zero.

    Args:
        layer: The dense convolution; not trained.
        prefix: ``(n, a)``, the frozen cores before it; n is the product of their modes.
        mode: Width of the trained core's mode.
        suffix: ``(b, m)``, the frozen cores behind it.
    """

    prefix: torch.Tensor
    suffix: torch.Tensor

    def __init__(
        self, layer: ConvLayer, prefix: NDArray[Any], mode: int, suffix: NDArray[Any]
    ) -> None:
        super().__init__(layer)
        dtype = layer.weight.dtype
        self.register_buffer("prefix", torch.from_numpy(prefix.astype(np.float32)).to(dtype))
        self.register_buffer("suffix", torch.from_numpy(suffix.astype(np.float32)).to(dtype))
        self.core = nn.Parameter(torch.zeros(prefix.shape[1], mode, suffix.shape[0], dtype=dtype))

    def delta(self) -> torch.Tensor:
        """Return ``ΔK (O, I/g, *k)``."""
        product = torch.einsum("na,aib,bm->nim", self.prefix, self.core, self.suffix)
        return product.reshape(self.layer.weight.shape)


class OutputBranch(Branch):
    """A convolution moved by ``C·S`` from any start.

    Args:
        layer: The dense convolution; not trained.
        suffix: ``S (groups, r, I/g, *k)`` float64.
        core: ``C (O, r)`` float64, where training starts.
    """

    suffix: torch.Tensor

    def __init__(
        self, layer: ConvLayer, suffix: NDArray[np.float64], core: NDArray[np.float64]
    ) -> None:
        super().__init__(layer)
        dtype = layer.weight.dtype
        self.register_buffer("suffix", torch.from_numpy(suffix.copy()).to(dtype))
        self.core = nn.Parameter(torch.from_numpy(core.copy()).to(dtype))

    def delta(self) -> torch.Tensor:
        """Return ``C·S (O, I/g, *k)``."""
        groups, rank = self.suffix.shape[:2]
        cores = self.core.view(groups, -1, rank)
        return torch.matmul(cores, self.suffix.flatten(2)).view(self.layer.weight.shape)


def train_cores(layer: ConvLayer, rank: int, name: str) -> list[NDArray[np.float64]]:
    """Return the two or three cores of a kernel's train, bonds cut to ``rank``.

    Args:
        layer: The convolution.
        rank: Largest bond.
        name: Layer, for errors.

    Returns:
        Float64 ``(O, r1), (r1, I/g, r2), (r2, Πk)``; ``(O, r1), (r1, n)`` where a mode has width 1.

    Raises:
        ModelError: With the code of the FrameError that forbids the train, e.g. ``rank-too-large``.
    """
    kernel = layer.weight.detach().cpu().double().numpy()
    inner = [n for n in (kernel.shape[1], int(np.prod(kernel.shape[2:]))) if n > 1]
    modes = (kernel.shape[0], *(inner or [1]))
    try:
        check_rank(kernel.shape, "tt", rank, groups=layer.groups, layer=name)
        return tt_svd(kernel.reshape(modes), rank, layer=name)
    except FrameError as error:
        raise ModelError(error.code, error.message, error.hint) from error


def _contract(cores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return reduce(lambda product, core: np.tensordot(product, core, axes=1), cores)


def _attach_train(start: Start, *, trained: int) -> Tuned:
    """Train core ``trained`` of every kernel's train; negative counts from the end."""

    def make(name: str, layer: ConvLayer) -> nn.Module:
        cores = train_cores(layer, start.rank, name)
        index = trained % len(cores)
        prefix = _contract(cores[:index])
        suffix = _contract(cores[index + 1 :]) if index + 1 < len(cores) else np.ones((1, 1))
        return TrainBranch(
            layer, prefix.reshape(-1, prefix.shape[-1]), cores[index].shape[1], suffix
        )

    with single_thread():
        return Branched(replace_layers(start, make))


def best_core(kernel: NDArray[np.float64], suffix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the core ``C0 (O, r)`` for which ``C0·S`` comes closest to the kernel.

    Args:
        kernel: ``K (O, I/g, *k)``.
        suffix: ``S (groups, r, I/g, *k)``.
    """
    groups, rank = suffix.shape[:2]
    rows = kernel.reshape(groups, kernel.shape[0] // groups, -1)
    pairs = zip(suffix.reshape(groups, rank, -1), rows, strict=True)
    found = [np.linalg.lstsq(s.T, k.T, rcond=None)[0].T for s, k in pairs]
    return np.concatenate(found)


def _attach_output(start: Start, *, residual: bool) -> Tuned:
    """Train the output core from its SVD value, with the kernel made a residual or left whole."""

    def make(name: str, layer: ConvLayer) -> nn.Module | None:
        frame: Frame | None = start.frames.get(name)
        if frame is None:
            return None
        kernel = layer.weight.detach().cpu().double().numpy()
        suffix = frame.suffix(kernel)
        branch = OutputBranch(layer, suffix, best_core(kernel, suffix))
        if residual:
            with torch.no_grad():
                layer.weight -= branch.delta()
        return branch

    if not start.frames:
        raise ModelError(
            "no-frames",
            "a core that starts at its SVD value needs the frames of a base, and there are none",
            "Make frames with fleet.adapt.attach.make_frames.",
        )
    with single_thread():
        return Branched(replace_layers(start, make))


def _variant(name: str, summary: str, attach: Callable[[Start], Tuned], framed: bool) -> Tuner:
    return Tuner(name=name, summary=summary, attach=attach, exact=True, ranked=True, framed=framed)


core_middle = _variant(
    "core-middle",
    "ablation: the input-channel core of each tensor train, from zero",
    partial(_attach_train, trained=1),
    framed=False,
)

core_input = _variant(
    "core-input",
    "ablation: the last, time-side core of each tensor train, from zero",
    partial(_attach_train, trained=-1),
    framed=False,
)

core_svd_init = _variant(
    "core-svd-init",
    "ablation: the output core from its SVD value with nothing subtracted; starts off the base",
    partial(_attach_output, residual=False),
    framed=True,
)

core_residual = _variant(
    "core-residual",
    "ablation: the output core from its SVD value beside a residual kernel, as PiSSA",
    partial(_attach_output, residual=True),
    framed=True,
)
