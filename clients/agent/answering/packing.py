"""Bytes of what the store keeps for the agent: updates and checkpoints, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fleet.adapt.state import CoreState
from fleet.adapt.train import Progress
from fleet.errors import FleetError, StorageError
from fleet.federate.wire import Payload

__all__ = [
    "pack_fisher",
    "pack_progress",
    "pack_residual",
    "pack_update",
    "unpack_fisher",
    "unpack_progress",
    "unpack_residual",
    "unpack_update",
]


def pack_update(payload: Payload) -> bytes:
    """Return an update's bytes; its config holds texts, numbers and flags."""
    return _pack({"packed": payload.array}, dict(payload.config))


def unpack_update(content: bytes) -> Payload:
    """Return the update that :func:`pack_update` packed, to the bit.

    Raises:
        StorageError: ``outbox-damaged``.
    """
    arrays, record = _unpack(content, "outbox-damaged")
    return Payload(arrays["packed"], record)


def pack_residual(lost: NDArray[np.float32]) -> bytes:
    """Return what compression lost ``(size,)`` as bytes."""
    return _pack({"lost": lost}, {})


def unpack_residual(content: bytes) -> NDArray[np.float32]:
    """Return what :func:`pack_residual` packed, to the bit.

    Raises:
        StorageError: ``residual-damaged``.
    """
    arrays, _ = _unpack(content, "residual-damaged")
    return arrays["lost"]


def pack_fisher(fisher: CoreState) -> bytes:
    """Return the Fisher information of a core state's entries as bytes."""
    return _pack(fisher.arrays, {})


def unpack_fisher(content: bytes) -> CoreState:
    """Return what :func:`pack_fisher` packed, to the bit.

    Raises:
        StorageError: ``fisher-damaged``.
    """
    arrays, _ = _unpack(content, "fisher-damaged")
    try:
        return CoreState.of(arrays)
    except FleetError as error:
        raise StorageError("fisher-damaged", error.message, "") from error


def pack_progress(progress: Progress) -> bytes:
    """Return a training's progress as bytes."""
    return _pack(progress.arrays, {"steps": progress.steps, "total": progress.total})


def unpack_progress(content: bytes) -> Progress:
    """Return the progress that :func:`pack_progress` packed, to the bit.

    Raises:
        StorageError: ``checkpoint-damaged``.
    """
    arrays, record = _unpack(content, "checkpoint-damaged")
    return Progress(int(record["steps"]), float(record["total"]), arrays)


Value = str | int | float | bool


def _pack(arrays: Mapping[str, NDArray[Any]], record: Mapping[str, object]) -> bytes:
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return bytes(save(whole, {"record": json.dumps(record)}))


def _unpack(content: bytes, code: str) -> tuple[dict[str, NDArray[np.float32]], dict[str, Value]]:
    try:
        arrays = load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        record = json.loads(header["__metadata__"]["record"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StorageError(code, f"bytes of the store cannot be read: {error}", "") from error
    return arrays, record
