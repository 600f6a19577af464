"""Digests: SHA-256 over canonical little-endian bytes, names sorted, shapes and dtypes included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["canonical_json", "digest_arrays", "digest_json", "little_endian"]


def digest_arrays(arrays: Mapping[str, NDArray[Any]], header: Any = None) -> str:
    """Digest named arrays and an optional JSON header.

    Equal content gives equal digests whatever the insertion order, byte order or memory layout;
    any difference in a name, shape, dtype, bit or header gives another.

    Args:
        arrays: Arrays by name, any shape and dtype without objects.
        header: JSON-serialisable value that belongs to the content.

    Returns:
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    _feed(sha, canonical_json(header))
    for name in sorted(arrays):
        array = little_endian(arrays[name])
        _feed(sha, f"{name}\n{array.dtype.str}\n{','.join(map(str, array.shape))}".encode())
        _feed(sha, array.tobytes())
    return sha.hexdigest()


def digest_json(content: Any) -> str:
    """Digest a JSON-serialisable value: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(content)).hexdigest()


def canonical_json(content: Any) -> bytes:
    """Encode as JSON with sorted keys, no spaces, no NaN."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    ).encode()


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Return ``array`` contiguous and little-endian, copied only where it must be."""
    if array.dtype.hasobject:
        raise TypeError(f"an array of objects has no canonical bytes (dtype {array.dtype})")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def _feed(sha: Any, part: bytes) -> None:
    # The length in front keeps two different lists of parts from being the same stream.
    sha.update(len(part).to_bytes(8, "little"))
    sha.update(part)
