"""What a device tells a server that decides on releases and frames: counts and sums, no windows.

A *probe set* is filled once with the first labelled windows that are held back, and stays: it is
never trained on and never leaves the device.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clients.agent.continual import ContinualDevice, DeviceMemory, Labelled
from fleet.adapt.state import CoreState
from fleet.continual.exhaustion import gradient_energy
from fleet.continual.personal import held_back

__all__ = ["PROBE_WINDOWS", "energy_of", "for_probe", "set_aside"]

PROBE_WINDOWS = 32
# Windows that the energy of a gradient is taken of at most, evenly spaced.
ENERGY_WINDOWS = 128


def for_probe(memory: DeviceMemory, sources: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which windows ``(n,)`` are in the probe set, or would be while it has room."""
    probe = memory.probe
    if probe is None:
        return held_back(sources)
    inside = np.isin(sources, probe.source)
    return inside if len(probe) >= PROBE_WINDOWS else inside | held_back(sources)


def set_aside(memory: DeviceMemory, known: Labelled) -> tuple[DeviceMemory, Labelled]:
    """Put windows into the probe set; return what is remembered, and what may be trained on.

    A window that comes again is on the side where it was before.

    Args:
        memory: So far.
        known: Labelled windows in time order.
    """
    probe = memory.probe
    source, had = known.source, np.zeros(0, np.int64) if probe is None else probe.source
    first = np.zeros(len(known), np.bool_)
    first[np.unique(source, return_index=True)[1]] = True
    wanted = for_probe(memory, source) & ~np.isin(source, had) & first
    new = np.flatnonzero(wanted)[: PROBE_WINDOWS - len(had)]
    if len(new):
        added = known.take(new)
        probe = added if probe is None else _joined(probe, added)
        memory = replace(memory, probe=probe)
    inside = np.zeros(len(known), np.bool_) if probe is None else np.isin(source, probe.source)
    return memory, known.take(~inside)


def energy_of(
    device: ContinualDevice, release: CoreState, known: Labelled
) -> dict[str, tuple[float, float]]:
    """Return by layer what of a gradient lies outside the frame, and all of it.

    Args:
        device: Whose frames and statistics it is about.
        release: What is served.
        known: Windows that the gradient is taken of, one or more.
    """
    bench = device.own_bench
    some = known.take(np.arange(0, len(known), -(-len(known) // ENERGY_WINDOWS)))
    served = bench.served(release)
    return gradient_energy(served, bench.base.frames, bench.parameters, some.x, some.y)


def _joined(one: Labelled, two: Labelled) -> Labelled:
    return Labelled(
        np.concatenate([one.x, two.x]),
        np.concatenate([one.y, two.y]),
        np.concatenate([one.ids, two.ids]),
    )
