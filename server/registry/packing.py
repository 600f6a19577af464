"""Core states and updates as bytes: safetensors and ``.npy``, never pickled."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fleet.adapt.digest import little_endian
from fleet.adapt.state import CoreState
from fleet.errors import FleetError, StorageError
from fleet.federate.npy import from_npy, to_npy
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from server.registry.ledger import canonical
from server.registry.records import ReleaseRow
from server.rules.memory import Memory

__all__ = [
    "packed_arrays",
    "packed_state",
    "packed_update",
    "unpacked_memory",
    "unpacked_release",
    "unpacked_update",
]

_HINT = "Restore the last backup beside this registry and compare: fleet server restore."


def packed_state(state: CoreState) -> bytes:
    """Return a core state as safetensors, canonical."""
    return packed_arrays({name: state.arrays[name] for name in state.layout.names})


def packed_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays by name as safetensors, canonical."""
    return save_tensors({name: little_endian(array) for name, array in arrays.items()})


def unpacked_memory(rule: str, steps: int, content: bytes) -> Memory | None:
    """Return a rule's memory from its packed moments; None for bytes that are none."""
    try:
        return Memory.of(rule, steps, load_tensors(content))
    except (SafetensorError, ValueError):
        return None


def unpacked_release(row: ReleaseRow, content: bytes) -> Release:
    """Return a release from its row and its packed core state, checked against its digests.

    Raises:
        StorageError: ``release-damaged``.
    """
    try:
        release = Release(
            row.number,
            row.base,
            row.frame,
            row.parent,
            row.method,
            CoreState.of(load_tensors(content)),
            row.provenance,
        )
    except (SafetensorError, FleetError, ValueError) as error:
        raise StorageError(
            "release-damaged", f"release {row.number} cannot be read: {error}", _HINT
        ) from error
    if release.digest != row.digest or release.state.digest != row.state_digest:
        raise StorageError(
            "release-damaged",
            f"release {row.number} is kept as {row.digest[:12]}…, its content has "
            f"{release.digest[:12]}…",
            _HINT,
        )
    return release


def packed_update(payload: Payload) -> tuple[str, bytes]:
    """Return an update's header as JSON and its array as the bytes that the wire carries."""
    return canonical(dict(payload.config)), to_npy(payload.array)


def unpacked_update(header: str, content: bytes) -> Payload:
    """Return what :func:`packed_update` packed.

    Raises:
        StorageError: ``update-damaged``.
    """
    try:
        array = from_npy(content)
        if array is None:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        return Payload(array, json.loads(header))
    except (ValueError, EOFError, OSError) as error:
        raise StorageError(
            "update-damaged", f"an update cannot be read back: {error}", _HINT
        ) from error
