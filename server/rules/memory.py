"""What a rule remembers from round to round, kept beside the release of each round.

Server momentum, Adam and Yogi step by moments over all rounds so far. A run that goes on without
them would end elsewhere, so they are durable before their round counts and carry their digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import read_bundle, write_bundle
from fleet.adapt.digest import digest_arrays
from fleet.errors import MismatchError, StorageError

__all__ = ["NOTHING", "Memory", "load_memory", "save_memory"]

FORMAT = "corefleet.memory.1"


@dataclass(frozen=True, eq=False)
class Memory:
    """A rule's moments after some rounds; immutable.

    Args:
        rule: Spelling of the rule that they belong to; empty for none.
        steps: Rounds that went into them.
        arrays: Moments by name, float64 ``(size,)``.
    """

    rule: str = ""
    steps: int = 0
    arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, rule: str, steps: int, arrays: Mapping[str, NDArray[Any]]) -> Memory:
        """Freeze moments; they are copied."""
        kept = {name: np.array(array, np.float64) for name, array in sorted(arrays.items())}
        for array in kept.values():
            array.flags.writeable = False
        return cls(rule, steps, MappingProxyType(kept))

    @cached_property
    def digest(self) -> str:
        """Digest of rule, steps and bits."""
        return digest_arrays(self.arrays, [FORMAT, self.rule, self.steps])

    def of_rule(self, rule: str, size: int) -> Memory:
        """Return this memory, of a rule and a size.

        Raises:
            MismatchError: ``other-memory`` when it is another rule's or another layout's.
        """
        if self.steps and self.rule != rule:
            raise MismatchError(
                "other-memory", f"the rule {rule} cannot go on from the memory of {self.rule}"
            )
        wrong = [name for name, array in self.arrays.items() if array.shape != (size,)]
        if wrong:
            shape = self.arrays[wrong[0]].shape
            raise MismatchError("other-memory", f"{wrong[0]} has {shape}, the cores ({size},)")
        return self


NOTHING = Memory()
"""What a rule remembers before its first round, and most rules ever."""


def save_memory(memory: Memory, release: str, path: Path) -> None:
    """Write a memory durably to one safetensors file.

    Args:
        memory: What to keep.
        release: Digest of the release that it was left by.
        path: The file.
    """
    record = {
        "format": FORMAT,
        "digest": memory.digest,
        "rule": memory.rule,
        "steps": memory.steps,
        "release": release,
    }
    write_bundle(path, memory.arrays, record)


def load_memory(path: Path, release: str) -> Memory:
    """Read the memory that was left by a release.

    Raises:
        StorageError: ``bundle-missing``, ``bundle-damaged`` or ``memory-damaged``.
        MismatchError: ``bundle-format``, or ``other-memory`` when it stands beside another release.
    """
    tensors, record = read_bundle(path, FORMAT)
    try:
        memory = Memory.of(str(record["rule"]), int(record["steps"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("memory-damaged", f"{path} is no whole memory: {error}", "") from error
    if memory.digest != record.get("digest"):
        raise StorageError(
            "memory-damaged",
            f"{path} carries digest {str(record.get('digest'))[:12]}…, its content has "
            f"{memory.digest[:12]}…",
            "The file was changed; take it from a backup, or start a new run.",
        )
    if record.get("release") != release:
        raise MismatchError(
            "other-memory",
            f"{path} was left by release {str(record.get('release'))[:12]}…, not {release[:12]}…",
            "Take the file that belongs to this release, or start a new run.",
        )
    return memory
