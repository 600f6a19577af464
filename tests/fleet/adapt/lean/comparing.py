"""The lean trainer beside plain autograd."""

from __future__ import annotations

import torch
from torch.nn import functional

from fleet.adapt.attach import Attached, attach
from fleet.adapt.frames import FrameKind
from fleet.adapt.lean.module import LeanAttached, attach_lean
from tests.fleet.adapt.lean.networks import NETWORKS, folded, frames_of, state_of


def pair(
    name: str,
    kind: FrameKind = "svd",
    dense: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
    slice_windows: int | None = 2,
    rank: int = 2,
) -> tuple[Attached, LeanAttached]:
    network = folded(NETWORKS[name])
    frames = frames_of(network, kind, rank)
    state = state_of(network, frames, *dense)
    lean = attach_lean(network, frames, state, dtype=dtype, slice_windows=slice_windows)
    return attach(network, frames, state, dtype=dtype), lean


def gradients(attached: Attached, x: torch.Tensor) -> dict[str, torch.Tensor]:
    labels = torch.arange(len(x), device=x.device) % 4
    functional.cross_entropy(attached.module(x), labels).backward()
    found = {}
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad, None
    return found


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def assert_same(lean: LeanAttached, plain: Attached, x: torch.Tensor, tolerance: float) -> None:
    assert distance(lean.module(x).detach(), plain.module(x).detach()) <= tolerance
    wanted = gradients(plain, x)
    for name, gradient in gradients(lean, x).items():
        assert distance(gradient, wanted[name]) <= tolerance, name
