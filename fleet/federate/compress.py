"""Compression of an update: blocks of levels with a scale each, and what was lost for next time.

    packed = scales (float32, little-endian, one per 64 entries) · levels (int8, or two to a byte)

An entry is its block's scale times a level of -127 to 127 (``int8``) or -7 to 7 (``int4``). The
device keeps what rounding lost as a residual and adds it to its next update, so nothing is lost for
good: the sum of what is decoded over rounds is the sum of the updates but for the last residual.

Laws (tests/fleet/federate/test_compress.py): an entry moves by half a scale at most; zero stays
zero; decoded sums and the last residual are the true sum; one update has one form, any other bytes
are refused.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fleet.errors import MismatchError

__all__ = ["BLOCK_ENTRIES", "Encoding", "compressed", "decompressed", "packed_bytes"]

Encoding = Literal["none", "int8", "int4"]
BLOCK_ENTRIES = 64
# A scale beyond it belongs to entries that no sum takes.
LARGEST_SCALE = 8.0
SCALE = np.dtype("<f4")
LEVELS = {"int8": 127, "int4": 7}
# A smaller scale is none: dividing by it would leave what float32 holds in full.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
ZERO_NIBBLE = 8


def packed_bytes(size: int, how: Encoding) -> int:
    """Return the bytes of a packed update of ``size`` entries; 4 an entry for ``none``."""
    if how == "none":
        return 4 * size
    levels = size if how == "int8" else -(-size // 2)
    return SCALE.itemsize * _blocks(size) + levels


def compressed(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None, how: Encoding
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pack an update together with what the ones before it lost.

    Args:
        delta: float32 ``(size,)``.
        residual: What was lost so far, float32 ``(size,)``; None for nothing.
        how: ``int8`` or ``int4``.

    Returns:
        The packed update, uint8 ``(packed_bytes(size, how),)``, and what is lost now.

    Raises:
        MismatchError: ``not-finite`` for an update with NaN or infinity, which has no scale.
    """
    wanted = delta.astype(np.float64)
    if residual is not None:
        wanted += residual
    if not np.isfinite(wanted.astype(np.float32)).all():
        raise MismatchError("not-finite", "an update with NaN or infinity cannot be compressed")
    size, most = len(wanted), LEVELS[how]
    blocks = np.zeros((_blocks(size), BLOCK_ENTRIES))
    blocks.ravel()[:size] = wanted
    scales = (np.abs(blocks).max(axis=1, initial=0.0) / most).astype(SCALE)
    scales[scales < SMALLEST_SCALE] = 0.0
    by = np.where(scales > 0, scales, np.inf).astype(np.float64)
    levels = np.clip(np.rint(blocks / by[:, None]), -most, most).astype(np.int8).ravel()[:size]
    content = levels.view(np.uint8) if how == "int8" else _nibbles(levels)
    packed = np.concatenate([scales.view(np.uint8), content])
    return packed, (wanted - _decoded(scales, levels)).astype(np.float32)


def decompressed(packed: NDArray[np.uint8], size: int, how: Encoding) -> NDArray[np.float32]:
    """Return the update ``(size,)`` float32 that was packed; never raises anything else than said.

    Raises:
        MismatchError: ``packed-dtype``, ``packed-size``, ``packed-scale`` or ``packed-level``.
    """
    if packed.dtype != np.uint8:
        raise MismatchError("packed-dtype", f"{packed.dtype}; an {how} update is uint8")
    wanted = packed_bytes(size, how)
    if packed.shape != (wanted,):
        raise MismatchError(
            "packed-size", f"{packed.shape}; an {how} update of {size} entries has ({wanted},)"
        )
    cut = SCALE.itemsize * _blocks(size)
    # Copied: a message's bytes may lie anywhere.
    scales, content = np.frombuffer(packed[:cut].tobytes(), SCALE), packed[cut:]
    if not (np.isfinite(scales) & ~np.signbit(scales) & (scales <= LARGEST_SCALE)).all():
        raise MismatchError("packed-scale", f"a scale is from 0 to {LARGEST_SCALE:g}")
    most = LEVELS[how]
    if how == "int8":
        levels = np.frombuffer(content.tobytes(), np.int8)
        spare = levels[:0]
    else:
        both = np.stack([content & 15, content >> 4], axis=1).ravel().astype(np.int8) - ZERO_NIBBLE
        levels, spare = both[:size], both[size:]
    if (levels < -most).any() or spare.any():
        raise MismatchError("packed-level", f"a level is from -{most} to {most}")
    return _decoded(scales, levels)


def _decoded(scales: NDArray[np.float32], levels: NDArray[np.int8]) -> NDArray[np.float32]:
    flat = levels.astype(np.float32)
    flat *= np.repeat(scales.astype(np.float32), BLOCK_ENTRIES)[: len(flat)]
    return flat


def _nibbles(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    both = np.full(len(levels) + len(levels) % 2, ZERO_NIBBLE, np.uint8)
    both[: len(levels)] = (levels + np.int8(ZERO_NIBBLE)).view(np.uint8)
    packed: NDArray[np.uint8] = both[::2] | (both[1::2] << np.uint8(4))
    return packed


def _blocks(size: int) -> int:
    return -(-size // BLOCK_ENTRIES)
