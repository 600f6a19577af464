"""The streaming core: samples in, windows out; no store, no clock, no file.

How the samples are cut into pieces never changes the windows, and the state between two pieces is
plain JSON, exact to the bit.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.intake.grid import Segment, extend
from clients.agent.intake.spec import IntakeSpec
from clients.agent.store.records import WindowBatch
from fleet.errors import InputError
from fleet.har.windows import segment as cut

__all__ = ["JUMP_S", "TALLIES", "Stream"]

JUMP_S = 3600.0
"""A leap forward of more than this is counted as the clock's, not as a gap."""
TALLIES = (
    "samples",
    "not_finite",
    "duplicates",
    "gaps",
    "jumps_back",
    "jumps_forward",
    "segments",
    "windows",
)

Array = NDArray[np.float64]


class Stream:
    """Turns one source's samples into windows.

    A time that repeats the one before is dropped. A gap longer than the spec's, or a clock that
    jumps in either direction, ends the segment; no window spans two segments.

    Args:
        spec: Units, rate and window.

    Attributes:
        tally: What was seen, by the names in :data:`TALLIES`.
    """

    def __init__(self, spec: IntakeSpec) -> None:
        self.spec = spec
        self.tally: Counter[str] = Counter()
        self._factors = np.array(spec.factors, dtype=np.float64)
        self._dtype = np.dtype(spec.dtype)
        self._segment: Segment | None = None
        self._tail = np.empty((0, len(spec.columns)), self._dtype)
        self._tail_at = 0  # the grid point where the tail begins

    def push(self, times: Array, values: Array) -> WindowBatch:
        """Take samples and return the windows that they complete.

        Args:
            times: float64 ``(n,)``, seconds.
            values: float64 ``(n, c)``, in the source's units, columns as in the spec.

        Returns:
            Windows in the base's units, possibly none.

        Raises:
            InputError: ``bad-samples`` for other shapes.
        """
        if times.ndim != 1 or values.shape != (len(times), len(self.spec.columns)):
            raise InputError(
                "bad-samples",
                f"need times (n,) and values (n, {len(self.spec.columns)}),"
                f" not {times.shape} and {values.shape}",
            )
        self.tally["samples"] += len(times)
        with np.errstate(over="ignore"):
            values = values * self._factors
        times, values = self._usable(times, values)
        batches = [self._run(*run) for run in self._runs(times, values)]
        return self._joined(batches)

    def _usable(self, times: Array, values: Array) -> tuple[Array, Array]:
        """Drop what cannot be stored, and times that repeat the one before."""
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(self._dtype)).all(axis=1) & np.isfinite(times)
        if not finite.all():
            self.tally["not_finite"] += int(np.count_nonzero(~finite))
            times, values = times[finite], values[finite]
        if len(times):
            fresh = self._steps(times) != 0
            self.tally["duplicates"] += int(np.count_nonzero(~fresh))
            times, values = times[fresh], values[fresh]
        return times, values

    def _steps(self, times: Array) -> Array:
        """Return the time since the sample before; not a number for the very first."""
        before = self._segment.times[-1] if self._segment else np.nan
        return np.diff(times, prepend=before)

    def _runs(self, times: Array, values: Array) -> list[tuple[bool, Array, Array]]:
        """Split samples where a segment ends; tell of each run whether it begins one."""
        if not len(times):
            return []
        steps = self._steps(times)
        back, ahead = steps < 0, steps > self.spec.gap_s
        leaps = int(np.count_nonzero(steps > max(JUMP_S, self.spec.gap_s)))
        self.tally["jumps_back"] += int(np.count_nonzero(back))
        self.tally["jumps_forward"] += leaps
        self.tally["gaps"] += int(np.count_nonzero(ahead)) - leaps
        starts = np.flatnonzero(back | ahead | np.isnan(steps))
        self.tally["segments"] += len(starts)
        bounds = [0, *starts[starts > 0].tolist(), len(times)]
        begins = set(starts.tolist())
        return [
            (first in begins, times[first:end], values[first:end])
            for first, end in pairwise(bounds)
        ]

    def _run(self, begins: bool, times: Array, values: Array) -> WindowBatch:
        """Take an unbroken run."""
        spec = self.spec
        if begins or self._segment is None:
            self._segment = Segment.starting(times, values)
            self._tail, self._tail_at = self._tail[:0], 0
        self._segment, points = extend(
            self._segment, times, values, spec.rate_hz, averaged=spec.averaged
        )
        tail = np.concatenate([self._tail, points.astype(self._dtype)])
        signals = cut(tail, spec.window, spec.stride)
        first = self._tail_at + spec.stride * np.arange(len(signals))
        used = spec.stride * len(signals)
        self._tail, self._tail_at = tail[used:].copy(), self._tail_at + used
        self.tally["windows"] += len(signals)
        origin = self._segment.origin_s
        return WindowBatch(
            start_s=origin + first / spec.rate_hz,
            end_s=origin + (first + (spec.window - 1)) / spec.rate_hz,
            signals=signals,
            reach=spec.reach,
        )

    def _joined(self, batches: list[WindowBatch]) -> WindowBatch:
        shape = (0, len(self.spec.columns), self.spec.window)
        none = np.empty(0)
        return WindowBatch(
            start_s=np.concatenate([none, *(one.start_s for one in batches)]),
            end_s=np.concatenate([none, *(one.end_s for one in batches)]),
            signals=np.concatenate(
                [np.empty(shape, self._dtype), *(one.signals for one in batches)]
            ),
            reach=self.spec.reach,
        )

    def state(self) -> str:
        """Return everything that later samples depend on, as JSON."""
        seen = dict(sorted((+self.tally).items()))
        content: dict[str, Any] = {"spec": self.spec.digest, "tally": seen}
        if self._segment is not None:
            content |= {
                "origin_s": self._segment.origin_s,
                "made": self._segment.made,
                "times": _packed(self._segment.times),
                "values": _packed(self._segment.values),
                "tail": _packed(self._tail),
                "tail_at": self._tail_at,
            }
        return json.dumps(content)

    @classmethod
    def restored(cls, spec: IntakeSpec, state: str) -> Stream:
        """Go on from a state; one of another spec counts as an ended segment."""
        stream = cls(spec)
        content = json.loads(state)
        stream.tally.update(content["tally"])
        if content["spec"] == spec.digest and "made" in content:
            columns = len(spec.columns)
            stream._segment = Segment(
                float(content["origin_s"]),
                int(content["made"]),
                _unpacked(content["times"], np.dtype(np.float64)),
                _unpacked(content["values"], np.dtype(np.float64)).reshape(-1, columns),
            )
            stream._tail = _unpacked(content["tail"], stream._dtype).reshape(-1, columns)
            stream._tail_at = int(content["tail_at"])
        return stream


def _packed(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()


def _unpacked(text: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype.newbyteorder("<")).astype(dtype)
