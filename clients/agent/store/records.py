"""What goes into the store and comes out of it: frozen records, one place for every limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Added",
    "Caps",
    "Forgotten",
    "JournalEntry",
    "Loaded",
    "Outgoing",
    "Position",
    "Split",
    "SplitRule",
    "Statement",
    "WindowBatch",
]

MIB = 1 << 20
Split = Literal["train", "held-out", "border"]


class Caps(BaseModel):
    """How many bytes each kind may hold; the oldest go first, see ``eviction``.

    Args:
        windows_bytes: Signals of all windows.
        unlabelled_bytes: Signals of windows without a label, kept for drift and pseudo-labels.
        replay_bytes: Signals of pinned windows.
        labels_bytes: Statements about labels, with their history.
        journal_bytes: Entries of the training journal.
        outbox_bytes: Packed updates; what was delivered goes first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows_bytes: int = Field(default=256 * MIB, ge=1)
    unlabelled_bytes: int = Field(default=64 * MIB, ge=1)
    replay_bytes: int = Field(default=32 * MIB, ge=1)
    labels_bytes: int = Field(default=4 * MIB, ge=1)
    journal_bytes: int = Field(default=4 * MIB, ge=1)
    outbox_bytes: int = Field(default=16 * MIB, ge=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> Caps:
        wrong = [
            f"{name} is {getattr(self, name)}, more than windows_bytes {self.windows_bytes}"
            for name in ("unlabelled_bytes", "replay_bytes")
            if getattr(self, name) > self.windows_bytes
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class SplitRule(BaseModel):
    """Which arriving windows train and which are held out; fixed once, when they arrive.

    ``blocks`` goes by the order in which a person's windows arrive: of every ``block`` windows the
    last ``held_out`` are held out. Windows that share samples with the other side are ``border``
    and serve neither. ``train`` and ``held-out`` put all windows of a source on one side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["blocks", "train", "held-out"] = "blocks"
    block: int = Field(default=40, ge=2, le=100_000)
    held_out: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _both_sides(self) -> SplitRule:
        if self.held_out >= self.block:
            raise ValueError(f"held_out is {self.held_out}, not less than block {self.block}")
        return self

    def side(self, arrival: int, reach: int) -> Split:
        """Return the side of one window.

        Args:
            arrival: How many windows of the person came before it.
            reach: How many windows before it share samples with it, ``ceil(window / stride) - 1``.

        >>> [SplitRule(block=4, held_out=2).side(n, reach=1) for n in range(6)]
        ['train', 'train', 'border', 'held-out', 'border', 'train']
        """
        if self.kind != "blocks":
            return self.kind
        place = arrival % self.block
        first_held = self.block - self.held_out
        crossed = place - first_held if place >= first_held else place
        if crossed < reach and arrival >= first_held:
            return "border"
        return "held-out" if place >= first_held else "train"


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows as they arrive, in time order.

    Attributes:
        start_s: float64 ``(n,)``, time of each first sample, seconds since the epoch.
        end_s: float64 ``(n,)``, time of each last sample.
        signals: float16 or float32 ``(n, channels, samples)`` in the base's units, raw.
        reach: How many earlier windows share samples with one, see :meth:`SplitRule.side`.
    """

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    signals: NDArray[np.floating[Any]]
    reach: int = 0

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass(frozen=True)
class Added:
    """What became of a batch: new windows, repeated ones, and older ones that had to go."""

    new: int
    repeated: int
    evicted: int


@dataclass(frozen=True, eq=False)
class Loaded:
    """Windows out of the store, in the order of their arrival.

    Attributes:
        ids: int64 ``(n,)``.
        x: float32 ``(n, channels, samples)`` in the base's units, raw.
        labels: Class name or None.
        people: Who wore the sensor.
        start_s: float64 ``(n,)``.
        damaged: Windows left out because their bytes no longer match their checksum.
    """

    ids: NDArray[np.int64]
    x: NDArray[np.float32]
    labels: tuple[str | None, ...]
    people: tuple[str, ...]
    start_s: NDArray[np.float64]
    damaged: int = 0


@dataclass(frozen=True)
class Statement:
    """Somebody's word about a label; None takes one back. Later ones override, all are kept."""

    label: str | None
    author: str
    said_s: float
    window: int | None = None
    from_s: float | None = None
    to_s: float | None = None


@dataclass(frozen=True)
class Outgoing:
    """An update in the outbox; ``payload`` is None once a delivered one had to make room."""

    plan: str
    round: int
    payload: bytes | None
    put_s: float
    delivered_s: float | None


@dataclass(frozen=True)
class JournalEntry:
    """One event of a training job, e.g. ``started``, ``finished``, ``refused``."""

    plan: str
    round: int
    event: str
    at_s: float
    people: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Position:
    """How far a source was taken in.

    Attributes:
        offset: Bytes consumed; 0 where a source has none (standard input, a socket).
        prefix: SHA-256 of those bytes, so that a rewritten file is noticed.
        state: The intake's own state, JSON.
    """

    offset: int
    prefix: bytes
    state: str


@dataclass(frozen=True)
class Forgotten:
    """What forgetting a person deleted, and what is out of the device's reach.

    Attributes:
        deleted: Rows by kind.
        server_holds: ``(plan, round)`` of delivered updates that the person's windows shaped.
        cleared: Whether the log was emptied too; a reader in another process delays that.
    """

    person: str
    deleted: Mapping[str, int]
    server_holds: tuple[tuple[str, int], ...]
    cleared: bool
