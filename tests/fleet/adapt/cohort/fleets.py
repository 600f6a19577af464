"""Small fleets of devices, and the oracle: each trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import attach
from fleet.adapt.cohort.network import CohortNetwork, attach_cohort
from fleet.adapt.cohort.train import Outcome
from fleet.adapt.cohort.work import DeviceWork
from fleet.adapt.frames import Frame, FrameKind
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.state import CoreState, Layout
from fleet.adapt.train import TrainingResult, batches, train
from fleet.peft.core import core
from fleet.peft.head import head
from fleet.peft.method import combined
from fleet.peft.registry import METHODS
from fleet.seeds import generator
from tests.fleet.adapt.lean.networks import (
    CLASSES,
    NETWORKS,
    folded,
    frames_of,
    registered,
    state_of,
    windows,
)

BACKBONES = ("calanet", "mobilenetv2-1d", "mobilenetv2-2d", "small-cnn", "t-resnet")
SIZES = (5, 12, 17)
_METHODS = {**METHODS, "core+head": combined(core, head)}


@dataclass(frozen=True)
class Bench:
    """A folded network, its frames and where every device starts."""

    network: nn.Module
    frames: dict[str, Frame]
    state: CoreState

    def cohort(
        self, dtype: torch.dtype = torch.float64, slice_windows: int | None = None
    ) -> CohortNetwork:
        return attach_cohort(
            *(self.network, self.frames, self.state, len(SIZES)),
            dtype=dtype,
            slice_windows=slice_windows,
        )

    def alone(
        self,
        works: Sequence[DeviceWork],
        dtype: torch.dtype = torch.float64,
        lean: bool = False,
        **how: Any,
    ) -> list[tuple[CoreState, TrainingResult]]:
        """Train one device after the other; under plain autograd unless ``lean``."""
        attached = (attach_lean if lean else attach)(
            self.network, self.frames, self.state, dtype=dtype
        )
        before = attached.state()
        values = {n: p.detach().clone() for n, p in attached.parameters.items()}
        found = []
        for work in works:
            for name, parameter in attached.parameters.items():
                parameter.data.copy_(values[name])
            result = train(attached, work.x.to(dtype), work.y, work.order, **how)
            found.append((attached.state() - before, result))
        return found


@cache
def network_of(name: str) -> nn.Module:
    return folded(NETWORKS[name] if name in NETWORKS else registered(name))


@cache
def bench(name: str, method: str = "core+head", kind: FrameKind = "svd") -> Bench:
    """A bench whose start is away from the base in every entry."""
    network = network_of(name)
    frames = frames_of(network, kind)
    layout: Layout = _METHODS[method].layout(network, frames)
    random = np.random.default_rng(2)
    start = CoreState.from_flat(layout, 0.05 * random.standard_normal(layout.size))
    return Bench(network, frames, start)


def bench_of(network: nn.Module, *dense: str) -> Bench:
    frames = frames_of(network)
    return Bench(network, frames, state_of(network, frames, *dense))


def work(
    count: int, device: str = "a", *, epochs: int = 2, batch: int = 8, scale: float = 1.0
) -> DeviceWork:
    """A device of ``count`` windows, in the order in which its learner would visit them."""
    seed = sum(map(ord, device)) + count
    order = batches(count, batch=batch, epochs=epochs, generator=generator(0, 1, device, "batches"))
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, CLASSES, count))
    return DeviceWork(scale * windows(count, torch.float32, seed), labels, tuple(order))


def fleet(**how: Any) -> list[DeviceWork]:
    return [work(count, str(count), **how) for count in SIZES]


def fleet_for(name: str) -> list[DeviceWork]:
    """Ragged devices; fewer windows for networks of many layers."""
    if not name.startswith("mobilenet"):
        return fleet()
    return [work(count, str(count), batch=4) for count in (2, 5, 7)]


def flat(outcome: Outcome) -> NDArray[Any]:
    assert isinstance(outcome, tuple), outcome
    return outcome[0].flat()


def assert_alike(got: Sequence[Outcome], wanted: Sequence[Outcome], tolerance: float) -> None:
    """Every entry of every device, against the entry's largest value; and what training says."""
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert isinstance(one, tuple), one
        assert isinstance(other, tuple), other
        assert one[0].layout == other[0].layout
        assert other[0].norm > 0
        for name, array in other[0].arrays.items():
            limit = tolerance * np.abs(array).max()
            np.testing.assert_allclose(one[0].arrays[name], array, tolerance, limit, err_msg=name)
        assert one[1].steps == other[1].steps
        np.testing.assert_allclose(one[1].loss, other[1].loss, rtol=tolerance)
