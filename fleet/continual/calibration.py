"""Calibration: a device's own batch-norm statistics, from windows without labels (AdaBN).

Kernels, frames and cores stay those of the fleet; what is a device's own is one scale and one shift
per channel behind each convolution, and it never leaves the device. So averaging cores still is
averaging kernels, as in FedBN (Li et al., arXiv:2102.07623). The statistics are those of Li et al.,
"Revisiting Batch Normalization For Practical Domain Adaptation", arXiv:1603.04779.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.base import Base
from fleet.adapt.digest import digest_arrays
from fleet.adapt.fold import ChannelAffine
from fleet.adapt.network import raw_network
from fleet.errors import InputError
from fleet.peft.ada_bn import BATCH, calibrate
from fleet.peft.batch_norm import batch_norms

__all__ = ["Calibration", "absorbed", "calibrated", "calibration_of", "neutral", "trust_of"]

# A scale beyond says that a channel was silent on one side; following it would only amplify noise.
LARGEST_SCALE = 4.0
# With as many windows as this, the statistics of a device count for half.
PRIOR_WINDOWS = 64


@dataclass(frozen=True, eq=False)
class Calibration:
    """A device's own affine map behind each batch norm's place in the folded network.

    Args:
        maps: By the norm's name: scale and shift, float32 ``(channels,)`` each; ``scale·z + shift``
            of what the fleet's network has there.
    """

    maps: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return ``NAME/scale`` and ``NAME/shift``, fit for a safetensors file."""
        return {
            f"{name}/{kind}": array
            for name, pair in self.maps.items()
            for kind, array in zip(("scale", "shift"), pair, strict=True)
        }

    @property
    def digest(self) -> str:
        """Digest of all maps."""
        return digest_arrays(self.arrays())

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Calibration:
        """Return what :meth:`arrays` was called on."""
        names = sorted({key.rpartition("/")[0] for key in arrays})
        return cls({n: (arrays[f"{n}/scale"], arrays[f"{n}/shift"]) for n in names})


def trust_of(windows: int) -> float:
    """Return what share a device's statistics of so many windows deserve."""
    return windows / (windows + PRIOR_WINDOWS)


def calibration_of(
    base: Base, x: NDArray[np.float32], *, trust: float = 1.0, batch: int = BATCH
) -> Calibration:
    """Estimate a device's calibration.

    Args:
        base: The base; its own statistics are the source's.
        x: The device's windows, normalised ``(n, channels, window)``, two or more; no labels.
        trust: Share of the device's statistics in those that hold, 0 to 1; the rest is the
            source's. Few windows deserve less than all.
        batch: Windows that run together, as of :func:`fleet.peft.ada_bn.calibrate`; memory grows
            with it.

    Raises:
        InputError: ``too-few-windows``, ``calibration-trust``.
        ModelError: ``nothing-to-train`` for a network without batch norms.
    """
    if not 0 <= trust <= 1:
        raise InputError("calibration-trust", f"trust is a share, 0 to 1, not {trust}")
    raw = raw_network(base)
    target = batch_norms(calibrate(raw, torch.from_numpy(np.asarray(x)), batch=batch))
    maps = {}
    for name, norm in batch_norms(raw).items():
        mean, deviation = _moments(norm)
        own_mean, own_deviation = _moments(target[name])
        mixed = mean + trust * (own_mean - mean)
        spread = torch.sqrt(deviation**2 + trust * (own_deviation**2 - deviation**2))
        ratio = (deviation / spread).clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
        weight = norm.get_parameter("weight").detach().double()
        bias = norm.get_parameter("bias").detach().double()
        # z = weight·(c - mean)/deviation + bias is what the fleet's network has; what is wanted is
        # the same with the device's moments.
        shift = bias * (1 - ratio) + weight * (mean - mixed) / deviation * ratio
        maps[name] = (ratio.numpy().astype(np.float32), shift.numpy().astype(np.float32))
    return Calibration(maps)


def neutral(base: Base) -> Calibration:
    """Return the calibration that changes nothing: scales of one, shifts of zero.

    Raises:
        ModelError: ``nothing-to-train`` for a network without batch norms.
    """
    maps = {}
    for name, norm in batch_norms(raw_network(base)).items():
        channels = len(norm.get_buffer("running_mean"))
        maps[name] = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return Calibration(maps)


def calibrated(folded: nn.Module, calibration: Calibration) -> nn.Module:
    """Return a copy of a folded network with a device's own maps behind its convolutions.

    Args:
        folded: The fleet's folded network, see :func:`fleet.adapt.fold.fold`; not changed.
        calibration: The device's.
    """
    network = copy.deepcopy(folded)
    for name, (scale, shift) in calibration.maps.items():
        before = network.get_submodule(name)
        own = ChannelAffine(torch.from_numpy(np.array(scale)), torch.from_numpy(np.array(shift)))
        if isinstance(before, ChannelAffine):
            with torch.no_grad():
                own.shift.add_(own.scale * before.shift)
                own.scale.mul_(before.scale)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, own)
    return network.requires_grad_(False).eval()


def absorbed(
    parameters: Mapping[str, NDArray[Any]], calibration: Calibration, layers: Mapping[str, str]
) -> dict[str, NDArray[Any]]:
    """Return dense kernels that compute what a :func:`calibrated` network computes with these.

    A map behind a convolution goes into it, ``W ← scale·W``, ``b ← scale·b + shift``; one at a
    place whose norm did not fold is composed with what is there. Computed in float64, rounded once.

    Args:
        parameters: Of the folded network, e.g. of a merged release, by name; not changed.
        calibration: The device's.
        layers: By a norm's name, the convolution that it folded into; others were not folded.
    """
    moved = dict(parameters)
    for name, (scale, shift) in calibration.maps.items():
        layer = layers.get(name)
        kernel, bias = (
            (f"{name}.scale", f"{name}.shift")
            if layer is None
            else (f"{layer}.weight", f"{layer}.bias")
        )
        before = moved[kernel]
        wide = scale.astype(np.float64)
        lifted = wide.reshape(-1, *(1,) * (before.ndim - 1))
        moved[kernel] = (lifted * before.astype(np.float64)).astype(before.dtype)
        total = wide * moved[bias].astype(np.float64) + shift.astype(np.float64)
        moved[bias] = total.astype(moved[bias].dtype)
    return moved


def _moments(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation, epsilon included, float64 ``(channels,)``."""
    variance = norm.get_buffer("running_var").double() + float(getattr(norm, "eps", 0.0))
    return norm.get_buffer("running_mean").double(), torch.sqrt(variance)
