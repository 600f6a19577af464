"""What the device's features are like: learned once, from its own first windows.

Simulations fit a :class:`~fleet.continual.signals.Reference` to source people; a device has none of
their windows, and its base carries none. Its own do as well (docs/drift.md has what was measured):
detectors compare a window with earlier ones of the same device, so the reference only says in which
directions its features vary at all. Windows that it is made of are shown to no detector: their
distance is smaller than that of any that follow.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.continual.signals import Reference
from fleet.errors import StorageError

__all__ = ["LARGEST_FEATURES", "narrowed", "pack", "unpack"]

LARGEST_FEATURES = 256
"""Wider features are projected to so many: the reference grows with their square."""


def narrowed(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features ``(n, d)`` with at most :data:`LARGEST_FEATURES` columns.

    Wider ones times a fixed random matrix keep their distances but for a few per cent
    (Johnson & Lindenstrauss, 1984).
    """
    width = features.shape[1]
    if width <= LARGEST_FEATURES:
        return features
    shape = (width, LARGEST_FEATURES)
    matrix = np.random.default_rng(width).standard_normal(shape, np.float32)
    projected: NDArray[np.float32] = features @ matrix / np.float32(np.sqrt(LARGEST_FEATURES))
    return projected


def pack(reference: Reference, base: str) -> dict[str, Any]:
    """Return a reference as JSON values.

    Args:
        reference: Of float64 ``(k, d)`` and ``(d, d)``.
        base: Digest of the base whose features it is of.
    """
    arrays = {"means": reference.means, "whitening": reference.whitening}
    return {"base": base, **{name: _packed(array) for name, array in arrays.items()}}


def unpack(packed: Mapping[str, Any], base: str) -> Reference | None:
    """Return what :func:`pack` packed; None when it is of another base.

    Raises:
        StorageError: ``bad-reference``.
    """
    if packed.get("base") != base:
        return None
    try:
        means, whitening = (_unpacked(packed[name]) for name in ("means", "whitening"))
        if whitening.shape != (means.shape[1],) * 2:
            raise ValueError(f"shapes {means.shape} and {whitening.shape}")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        text = f"this is no reference of a drift detector: {error!r}"
        raise StorageError("bad-reference", text, "It is learned anew.") from error
    return Reference(means, whitening)


def _packed(array: NDArray[np.float64]) -> dict[str, Any]:
    content = np.ascontiguousarray(array, "<f8").tobytes()
    return {"shape": list(array.shape), "f8": base64.b64encode(content).decode()}


def _unpacked(packed: Mapping[str, Any]) -> NDArray[np.float64]:
    content = base64.b64decode(packed["f8"], validate=True)
    array = np.frombuffer(content, "<f8").reshape([int(size) for size in packed["shape"]])
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError("not two finite dimensions")
    return array.astype(np.float64)
