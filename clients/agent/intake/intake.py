"""The intake: what a source gives goes to the store, once, however often it is cut off."""

from __future__ import annotations

from dataclasses import dataclass

from clients.agent.intake.parse import Chunk
from clients.agent.intake.spec import IntakeSpec
from clients.agent.intake.stream import Stream
from clients.agent.store.records import Added, Position
from clients.agent.store.store import Store
from fleet.errors import InputError

__all__ = ["COMMIT_SAMPLES", "Intake", "IntakeReport"]

COMMIT_SAMPLES = 256
"""Without a new window, progress is kept after so many samples: fewer wear out a memory card."""
LARGEST_NAME = 200


@dataclass(frozen=True)
class IntakeReport:
    """What one intake did.

    Attributes:
        samples: Samples read.
        malformed: Lines that held none, or numbers that are not finite.
        duplicates: Samples whose time repeats the one before.
        gaps: Times that samples were missing for too long.
        jumps_back: Times that the clock went back.
        jumps_forward: Times that it leapt ahead.
        segments: Unbroken stretches.
        windows: Windows made.
        new: Of these, windows that the store did not have.
        repeated: Windows that it had.
        evicted: Older windows that made room.
    """

    samples: int
    malformed: int
    duplicates: int
    gaps: int
    jumps_back: int
    jumps_forward: int
    segments: int
    windows: int
    new: int
    repeated: int
    evicted: int


class Intake:
    """Takes one source's samples into a store, from where the last intake of it ended.

    Windows, the position behind them and the counts go to the store in one transaction, so that a
    power cut at any point loses and repeats nothing.

    Args:
        spec: Units, rate and window.
        store: Where windows go.
        person: Who wears the sensor.
        source: Names the source; the same name goes on where it ended.
        label: What people read as the windows' origin; None takes ``source``.

    Raises:
        InputError: ``bad-name`` for an empty or overlong person or source.
    """

    def __init__(
        self, spec: IntakeSpec, store: Store, person: str, source: str, label: str | None = None
    ) -> None:
        for text in (person, source):
            if not 1 <= len(text.strip()) <= LARGEST_NAME:
                raise InputError(
                    "bad-name",
                    f"person and source must have 1 to {LARGEST_NAME} characters, not {text!r}",
                )
        self.spec = spec
        self._store = store
        self._key = person, source
        self._label = label or source
        self.position = store.positions.get(person, source)
        self._saved = self.position or Position(0, b"", Stream(spec).state())
        self._stream = Stream.restored(spec, self._saved.state)
        self._kept = dict(self._stream.tally)
        self._begin = dict(self._stream.tally)
        self._since = 0
        self._malformed = self._malformed_kept = 0
        self._added = Added(0, 0, 0)

    def take(
        self, chunk: Chunk, offset: int = 0, prefix: bytes = b"", *, last: bool = False
    ) -> int:
        """Take samples; what makes a window is on the disk when this returns.

        Args:
            chunk: Samples, directly behind those of the call before.
            offset: Bytes of the source behind them, 0 where it has none.
            prefix: SHA-256 of those bytes.
            last: Keep the progress even if there is no new window.

        Returns:
            How many windows were new to the store.

        Raises:
            StorageError: Nothing since the last progress was kept; the intake stands there again.
        """
        try:
            batch = self._stream.push(chunk.times, chunk.values)
            self._malformed += chunk.malformed
            self._since += len(chunk.times)
            if not (len(batch) or last or self._since >= COMMIT_SAMPLES):
                return 0
            position = Position(offset, prefix, self._stream.state())
            with self._store.transaction():
                person, _ = self._key
                added = self._store.windows.add(person, self._label, batch, self.spec.split)
                self._store.positions.put(*self._key, position)
                self._store.counters.add(self._counts())
        except BaseException:
            self._stream = Stream.restored(self.spec, self._saved.state)
            self._malformed, self._since = self._malformed_kept, 0
            raise
        self._saved, self._kept, self._since = position, dict(self._stream.tally), 0
        self._malformed_kept = self._malformed
        before = self._added
        self._added = Added(
            before.new + added.new, before.repeated + added.repeated, before.evicted + added.evicted
        )
        return added.new

    def _counts(self) -> dict[str, int]:
        """Return what changed since the last progress, as the store's counters."""
        tally = self._stream.tally
        counts = {f"intake.{name}": tally[name] - self._kept.get(name, 0) for name in tally}
        return counts | {"intake.malformed": self._malformed - self._malformed_kept}

    def report(self) -> IntakeReport:
        """Return what this intake did so far."""
        tally = self._stream.tally
        seen = {name: tally[name] - self._begin.get(name, 0) for name in tally}
        return IntakeReport(
            samples=seen.get("samples", 0),
            malformed=self._malformed + seen.get("not_finite", 0),
            duplicates=seen.get("duplicates", 0),
            gaps=seen.get("gaps", 0),
            jumps_back=seen.get("jumps_back", 0),
            jumps_forward=seen.get("jumps_forward", 0),
            segments=seen.get("segments", 0),
            windows=seen.get("windows", 0),
            new=self._added.new,
            repeated=self._added.repeated,
            evicted=self._added.evicted,
        )
