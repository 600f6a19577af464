"""Bytes of a private core, as safetensors."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fleet.adapt.state import CoreState
from fleet.errors import FleetError, StorageError

__all__ = ["pack", "unpack"]


def pack(core: CoreState) -> bytes:
    """Return a core state's bytes."""
    return bytes(save({name: np.array(array) for name, array in core.arrays.items()}))


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
