"""A private core as the store keeps it; its bytes are safetensors."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clients.agent.serving.kept import KeptRelease
from clients.agent.store.personal import PersonalRow
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.errors import FleetError, StorageError

__all__ = ["pack", "row_of", "unpack"]


def pack(core: CoreState) -> bytes:
    """Return a core state's bytes."""
    return bytes(save({name: np.array(array) for name, array in core.arrays.items()}))


def row_of(
    core: CoreState, base: Base, release: KeptRelease, people: frozenset[str]
) -> PersonalRow:
    """Return the row of a core that was trained on a release, not judged yet.

    Args:
        core: The core.
        base: The device's.
        release: What it was trained on.
        people: Whose windows shaped it.
    """
    return PersonalRow(
        base.digest,
        base.frame_digest,
        core.layout.digest,
        release.method,
        release.number,
        release.state.digest,
        pack(core),
        people,
    )


def unpack(content: bytes) -> CoreState:
    """Return the core state that :func:`pack` packed, to the bit.

    Raises:
        StorageError: ``personal-damaged``, also for NaN and infinity.
    """
    try:
        core = CoreState.of(load(content))
    except (SafetensorError, ValueError, FleetError) as error:
        raise StorageError(
            "personal-damaged", f"the private core cannot be read: {error}", ""
        ) from error
    if not core.finite:
        raise StorageError("personal-damaged", "the private core holds NaN or infinity", "")
    return core
