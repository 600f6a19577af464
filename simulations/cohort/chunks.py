"""Chunks: which devices of a cohort train together, whoever computes them.

Chunks follow from the devices alone. Any number of threads or machines therefore adds the same
numbers in the same order, and ends in the same digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from fleet.errors import InputError

__all__ = ["chunks_of", "in_order"]

Answer = TypeVar("Answer")


def chunks_of(
    partitions: Sequence[int], windows: Callable[[int], int], size: int
) -> list[list[int]]:
    """Return chunks of devices with about as many windows each, the largest first.

    Devices of equal size fill their batches alike, and whoever takes chunks in this order ends with
    the small ones. Chunks hold about as many devices each, and their number is even unless there is
    one: a last small chunk would keep one of two cores waiting.

    Args:
        partitions: Partition ids, each once.
        windows: Returns how many windows a device trains on; 0 where nobody knows.
        size: Most devices per chunk.

    Raises:
        InputError: ``cohort-chunk`` when a chunk has no devices.
    """
    if size < 1:
        raise InputError("cohort-chunk", f"a chunk has 1 device or more, not {size}")
    held = {partition: windows(partition) for partition in partitions}
    alike = sorted(partitions, key=lambda partition: (-held[partition], partition))
    count = -(-len(alike) // size)
    count += count % 2 if 1 < count < len(alike) else 0
    ends = [round(part * len(alike) / count) for part in range(count + 1)] if count else [0]
    return [alike[start:end] for start, end in pairwise(ends)]


def in_order(
    partitions: Sequence[int], chunks: Sequence[Sequence[int]], answers: Sequence[Sequence[Answer]]
) -> list[Answer]:
    """Return the answers of chunks in the order of ``partitions``."""
    found = {
        partition: answer
        for chunk, given in zip(chunks, answers, strict=True)
        for partition, answer in zip(chunk, given, strict=True)
    }
    return [found[partition] for partition in partitions]
