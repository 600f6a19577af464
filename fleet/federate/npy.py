"""Packed arrays as ``.npy`` files in memory, written and read without numpy's general machinery.

Flower carries an array as the file that ``np.save`` writes. Of a packed array only the header
could ever differ, and it depends on the length alone; so it is made once per length, and reading
is a comparison and a view. Anything else is left to numpy.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["from_npy", "to_npy"]

ITEM = np.dtype("<f4")
# numpy pads a header of this kind to this many bytes.
HEADER_BYTES = 128
# A run has one length of array, perhaps one more while methods change.
MAX_KNOWN_HEADERS = 16


def to_npy(array: NDArray[np.float32]) -> bytes:
    """Return what ``np.save`` writes of ``array``.

    >>> np.load(io.BytesIO(to_npy(np.ones(3, np.float32))))
    array([1., 1., 1.], dtype=float32)
    """
    if array.dtype == ITEM and array.ndim == 1:
        return _header(len(array)) + array.tobytes()
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes) -> NDArray[np.float32] | None:
    """Return the packed array ``(size,)`` of a file, a read-only view of it.

    Returns:
        None when the file is anything but what :func:`to_npy` makes of a packed array; then it is
        numpy's to read or to refuse.
    """
    size, rest = divmod(len(data) - HEADER_BYTES, ITEM.itemsize)
    if size < 0 or rest or not data.startswith(b"\x93NUMPY\x01\x00"):
        return None
    if not data.startswith(_header(size)):
        return None
    return np.frombuffer(data, ITEM, offset=HEADER_BYTES)


@lru_cache(maxsize=MAX_KNOWN_HEADERS)
def _header(size: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(size, ITEM), allow_pickle=False)
    return buffer.getvalue()[:HEADER_BYTES]
