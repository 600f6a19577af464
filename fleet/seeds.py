"""Seeds by name: every random choice derives from (root, round, device, purpose).

Two engines that agree on these four agree on every batch order, rotation and selection, whatever
order they work in and however many processes they use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

__all__ = ["derive_seed", "generator", "sample"]


def derive_seed(root: int, round_number: int, device: str, purpose: str) -> int:
    """Derive a 63-bit seed from its four names by SHA-256.

    Args:
        root: The run's seed.
        round_number: Round, from 1; 0 for what happens before the first.
        device: Device name, or ``"fleet"`` or ``"server"`` for what is common.
        purpose: What the randomness is for, e.g. ``"batches"``.

    >>> derive_seed(0, 1, "person-07", "batches") == derive_seed(0, 1, "person-07", "batches")
    True
    >>> derive_seed(0, 1, "person-07", "batches") == derive_seed(0, 2, "person-07", "batches")
    False
    """
    name = f"{int(root)}/{int(round_number)}/{len(device)}:{device}/{purpose}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def generator(root: int, round_number: int, device: str, purpose: str) -> np.random.Generator:
    """Return a numpy generator (PCG64) seeded by :func:`derive_seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(root, round_number, device, purpose)))


def sample(names: Iterable[str], count: int, root: int, purpose: str) -> list[str]:
    """Return the ``count`` names that a seed likes best, sorted; all of them where ``count`` is 0.

    A name keeps its place when others come and go, so a sample of a changing fleet changes little.

    >>> sample(["b", "a", "c"], 0, 0, "evaluation")
    ['a', 'b', 'c']
    >>> len(sample(["b", "a", "c"], 2, 0, "evaluation"))
    2
    """
    ordered = sorted(names)
    if not 0 < count < len(ordered):
        return ordered
    return sorted(sorted(ordered, key=lambda name: derive_seed(root, 0, name, purpose))[:count])
