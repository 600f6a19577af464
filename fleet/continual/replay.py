"""Replay: a few labelled windows of the past, bounded by bytes and balanced over classes.

The buffer holds what a reservoir would: of every class a uniform sample of all windows seen. Each
window has a priority, a hash of its id and the device's key, and a class keeps those of lowest
priority (bottom-k sampling, Cohen & Kaplan, PODC 2007, doi:10.1145/1281100.1281133). The budget is
shared by water-filling: a class that has few windows leaves the rest of its share to the others.
Class balance and reservoirs together are CBRS (Chrysakis & Moens, ICML 2020), here without a coin
that would depend on the order of arrival.

Laws (tests/fleet/continual/test_replay.py): what is held depends on the set of windows seen and on
the key, never on their order or batches; the bytes held never exceed the budget; no class holds
fewer than another that has lost windows, but for one; ``of_arrays(arrays())`` is the same buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fleet.continual.encoding import decoded, encoded
from fleet.errors import InputError, StorageError
from fleet.seeds import derive_seed

__all__ = ["Encoding", "Evicted", "Reason", "Replay"]

Encoding = Literal["int8", "float16", "float32"]
_DTYPES: dict[str, type[np.generic]] = {"int8": np.int8, "float16": np.float16}
_ENCODINGS = get_args(Encoding)
MAX_BUDGET_BYTES = 1 << 40


class Reason(str, Enum):
    """Why a window is not in the buffer."""

    class_full = "class-full"
    """Others of its class have lower priorities and fill the class's share."""
    over_budget = "over-budget"
    """The share of its class became smaller, or no window fits into the budget."""
    relabelled = "relabelled"
    """The same window came again with another label."""


@dataclass(frozen=True)
class Evicted:
    """A window that was given up, or never taken.

    Args:
        id: The window's.
        label: Its class.
        reason: Why.
    """

    id: int
    label: int
    reason: Reason


@dataclass(frozen=True, eq=False)
class Replay:
    """A bounded buffer; :meth:`add` returns another one.

    Attributes:
        budget_bytes: Most bytes of :attr:`stored`, labels, ids and periods together.
        encoding: How samples are held.
        key: Seed of the priorities, 0 to 2^63 - 1.
        stored: ``(n, c, t)`` of the encoding's type, by ascending id.
        steps: float32 ``(n, c)``, what one step of int8 is; ``(n, 0)`` for other encodings.
        y: int32 ``(n,)``, classes.
        ids: int64 ``(n,)``, ascending.
        periods: int32 ``(n,)``, when each came.
    """

    budget_bytes: int
    encoding: Encoding
    key: int
    stored: NDArray[Any]
    steps: NDArray[np.float32]
    y: NDArray[np.int32]
    ids: NDArray[np.int64]
    periods: NDArray[np.int32]

    @classmethod
    def empty(
        cls, budget_bytes: int, encoding: Encoding = "int8", *, seed: int = 0, device: str = ""
    ) -> Replay:
        """Return a buffer without windows.

        Args:
            budget_bytes: At least 0; 0 holds nothing.
            encoding: ``int8`` has a scale per window and channel, its error is half a step at most.
            seed: The run's.
            device: Whose buffer, so that devices of one person keep different windows.

        Raises:
            InputError: ``replay-budget`` or ``replay-encoding``.
        """
        if not 0 <= budget_bytes <= MAX_BUDGET_BYTES:
            rule = f"a replay budget must be 0 to {MAX_BUDGET_BYTES:,} bytes, not {budget_bytes:,}"
            raise InputError("replay-budget", rule, "Give a budget in bytes, e.g. 1000000.")
        if encoding not in _ENCODINGS:
            raise InputError(
                "replay-encoding",
                f"replay holds int8, float16 or float32, not {encoding!r}",
                "Choose one of them.",
            )
        kept = np.zeros((0, 0, 0), _DTYPES.get(encoding, np.float32)), np.zeros((0, 0), np.float32)
        y, ids = np.zeros(0, np.int32), np.zeros(0, np.int64)
        key = derive_seed(seed, 0, device, "replay")
        return cls(int(budget_bytes), encoding, key, *kept, y, ids, y)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bytes_held(self) -> int:
        """Bytes of all arrays that grow with the windows."""
        return sum(array.nbytes for array in self._columns())

    def add(
        self, x: NDArray[np.float32], y: NDArray[np.int64], ids: Sequence[int], period: int
    ) -> tuple[Replay, tuple[Evicted, ...]]:
        """Show labelled windows to the buffer, in O(n log n).

        Args:
            x: float32 ``(n, c, t)``, normalised, finite.
            y: int64 ``(n,)``, 0 to 2^31 - 1.
            ids: ``n`` stable numbers; a window that is held already changes nothing, unless its
                label did: then the new one counts.
            period: When they came.

        Returns:
            The buffer that results and, by ascending id, what it does not hold of both.

        Raises:
            InputError: ``replay-windows`` for shapes, labels, ids or values that do not fit.
        """
        new = np.asarray(ids, dtype=np.int64)
        self._check(x, y, new)
        if not len(x):
            return self, ()
        # Of windows that come twice at once the last counts, as it would one after the other.
        last = np.sort(len(new) - 1 - np.unique(new[::-1], return_index=True)[1])
        x, labels, new = x[last], y[last].astype(np.int32), new[last]
        held = dict(zip(self.ids.tolist(), self.y.tolist(), strict=True))
        old = [held.get(each, -1) for each in new.tolist()]
        fresh = np.array(old) != labels
        moved = [(i, o) for i, o, f in zip(new.tolist(), old, fresh, strict=True) if f and o >= 0]
        stored, steps = encoded(x[fresh], self.encoding)
        count = int(fresh.sum())
        added = replace(
            self,
            stored=stored,
            steps=steps,
            y=labels[fresh],
            ids=new[fresh],
            periods=np.full(count, period, np.int32),
        )
        both = self._take(~np.isin(self.ids, new[fresh]))._joined(added)
        kept, evicted = both._bounded(self.y)
        evicted += [Evicted(i, label, Reason.relabelled) for i, label in moved]
        return kept, tuple(sorted(evicted, key=lambda each: each.id))

    def windows(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return new arrays: x float32 ``(n, c, t)`` and y int64 ``(n,)``, by ascending id."""
        return decoded(self.stored, self.steps), self.y.astype(np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all of the buffer as named arrays, e.g. for safetensors."""
        settings = [self.budget_bytes, _ENCODINGS.index(self.encoding), self.key]
        names = ("stored", "steps", "y", "ids", "periods")
        columns = dict(zip(names, self._columns(), strict=True))
        return {"settings": np.array(settings, np.int64)} | columns

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Replay:
        """Read back what :meth:`arrays` gave.

        Raises:
            StorageError: ``bad-replay`` for arrays that no buffer can have.
        """
        try:
            budget, number, key = (int(value) for value in arrays["settings"])
            columns = [arrays[name] for name in ("stored", "steps", "y", "ids", "periods")]
            if not (0 <= number < len(_ENCODINGS) and 0 <= key < 1 << 63):
                raise ValueError("settings out of range")
            found = replace(cls.empty(budget, _ENCODINGS[number]), key=key)
            for new, known in zip(columns, found._columns(), strict=True):
                if new.dtype != known.dtype or new.ndim != known.ndim:
                    raise ValueError(f"{new.dtype} {new.shape} in place of {known.dtype}")
            found = cls(budget, found.encoding, key, *columns)
            found._check_columns()
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise StorageError(
                "bad-replay",
                f"these arrays are no replay buffer: {error}",
                "Start with an empty buffer: Replay.empty.",
            ) from error
        return found

    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.stored, self.steps, self.y, self.ids, self.periods

    def _take(self, rows: NDArray[Any]) -> Replay:
        return Replay(
            self.budget_bytes, self.encoding, self.key, *(each[rows] for each in self._columns())
        )

    def _joined(self, other: Replay) -> Replay:
        if not len(self):
            joined = other
        else:
            pairs = zip(self._columns(), other._columns(), strict=True)
            columns = [np.concatenate(pair) for pair in pairs]
            joined = Replay(self.budget_bytes, self.encoding, self.key, *columns)
        return joined._take(np.argsort(joined.ids))

    def _bounded(self, before: NDArray[np.int32]) -> tuple[Replay, list[Evicted]]:
        """Keep each class's share; ``before`` are the labels of what was held until now."""
        if not len(self):
            return self, []
        room = self.budget_bytes * len(self) // self.bytes_held
        labels, classes = np.unique(self.y, return_inverse=True)
        shares = _shares(np.bincount(classes), room)
        # Position of each window within its class, by priority.
        order = np.lexsort((_priority(self.ids, self.key), classes))
        firsts = np.searchsorted(classes[order], np.arange(len(labels)))
        place = np.empty(len(self), np.int64)
        place[order] = np.arange(len(self)) - firsts[classes[order]]
        keep = place < shares[classes]
        had = np.array([(before == label).sum() for label in labels])
        evicted = []
        for row in np.flatnonzero(~keep):
            shrank = place[row] < had[classes[row]] or not room
            reason = Reason.over_budget if shrank else Reason.class_full
            evicted.append(Evicted(int(self.ids[row]), int(self.y[row]), reason))
        return self._take(keep), evicted

    def _check(self, x: NDArray[Any], y: NDArray[Any], ids: NDArray[np.int64]) -> None:
        problems = []
        if x.ndim != 3 or x.dtype != np.float32 or not x.shape[1] or not x.shape[2]:
            problems.append(f"x must be float32 (n, c, t), not {x.dtype} {x.shape}")
        elif not np.isfinite(x).all():
            problems.append("x holds NaN or Inf")
        elif len(self) and x.shape[1:] != self.stored.shape[1:]:
            problems.append(f"windows here are {self.stored.shape[1:]}, not {x.shape[1:]}")
        elif self.encoding == "float16" and np.abs(x).max(initial=0) > np.finfo(np.float16).max:
            problems.append("values beyond ±65504 do not fit float16")
        if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or ids.shape != x.shape[:1]:
            problems.append("each window needs one integer label and one id")
        elif len(y) and not 0 <= y.min() <= y.max() < 1 << 31:
            problems.append(f"labels must be 0 to 2^31 - 1, not {y.min()} to {y.max()}")
        if problems:
            raise InputError("replay-windows", "; ".join(problems), "Normalise the windows first.")

    def _check_columns(self) -> None:
        count, channels = self.stored.shape[:2]
        width = channels if self.encoding == "int8" else 0
        if self.steps.shape != (count, width):
            raise ValueError(f"steps are {self.steps.shape}, not {(count, width)}")
        if any(len(each) != count for each in self._columns()):
            raise ValueError("the arrays differ in length")
        if (np.diff(self.ids) <= 0).any() or (self.y < 0).any():
            raise ValueError("ids must ascend and labels must not be negative")
        floats = [each for each in (self.stored, self.steps) if each.dtype.kind == "f"]
        if not all(np.isfinite(each).all() for each in floats):
            raise ValueError("NaN or Inf")
        if self.bytes_held > self.budget_bytes:
            raise ValueError(f"{self.bytes_held:,} bytes exceed {self.budget_bytes:,}")


def _shares(counts: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """Return how many windows each class keeps: all up to a common level, the odd ones in order.

    The level never rises when counts grow, so no class will ever want back what it gave up.
    """
    if counts.sum() <= room:
        return counts
    level, left, open_classes = 0, room, len(counts)
    for count in np.sort(counts).tolist():
        if count * open_classes > left:
            level = left // open_classes
            break
        left, open_classes, level = left - count, open_classes - 1, count
    shares = np.minimum(counts, level)
    wanting = np.flatnonzero(counts > level)
    shares[wanting[: room - int(shares.sum())]] += 1
    return shares


def _priority(ids: NDArray[np.int64], key: int) -> NDArray[np.uint64]:
    """Hash ids one to one: SplitMix64's finaliser (Steele et al., doi:10.1145/2660193.2660195)."""
    z = ids.view(np.uint64) ^ np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    hashed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return hashed
