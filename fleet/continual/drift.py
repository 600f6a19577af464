"""Drift detectors: one number per window in, the places where the stream has changed out.

A detector learns what is normal on its own device, so it needs no threshold in the signal's unit,
and starts anew after every alarm: what comes then is the new normal. All are deterministic, and
their state is JSON.

Laws (tests/fleet/continual/test_detectors.py, for every detector here): where alarms fall does not
depend on how the windows are batched; a detector restored from its state goes on as the first
would have; nothing is declared during warm-up, nor within ``warm_up`` windows of an alarm; a
constant stream never alarms, a large step does.

Which detector, which signal: docs/drift.md has what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fleet.continual.change_tests import AdwinTest, CusumTest, PageHinkleyTest, Running, Test
from fleet.continual.signals import confidence, entropy, feature_distance
from fleet.errors import InputError, StorageError

__all__ = [
    "DETECTORS",
    "Detector",
    "LabelFreeDrift",
    "LossDrift",
    "confidence",
    "entropy",
    "feature_distance",
    "restore",
]

TestName = Literal["cusum", "adwin", "page-hinkley"]
TESTS: dict[str, type[Test]] = {
    "cusum": CusumTest,
    "adwin": AdwinTest,
    "page-hinkley": PageHinkleyTest,
}
# Windows of a class that are learned from before the next is judged.
FIRST_OF_CLASS = 10
# A class that was rarely seen borrows its spread from all classes, with the weight of so many.
BORROWED = 20
# Standardised blocks beyond this many deviations count as much: one odd block raises no alarm.
CLIP = 4.0
MAX_CLASSES = 4096


class Detector(Protocol):
    """Watches one stream of one device."""

    kind: ClassVar[str]

    def update(self, values: NDArray[Any]) -> tuple[int, ...]:
        """Take the next windows, in time order; return rows of ``values`` at which drift is seen.

        Raises:
            InputError: ``drift-values`` for a wrong shape, NaN or Inf; nothing was taken then.
        """

    def restart(self) -> None:
        """Forget what was normal, as after an alarm; e.g. when the model has changed."""

    def state(self) -> dict[str, Any]:
        """Return parameters and memory as JSON values, for :func:`restore`."""


class LossDrift:
    """ADWIN over the loss, or the error 0 or 1, of labelled windows as their labels come.

    Bifet & Gavaldà, SDM 2007, doi:10.1137/1.9781611972771.42.

    Args:
        delta: ADWIN's significance. The theory bounds false alarms for independent values; windows
            of one bout are not, hence the small default.
        warm_up: Windows after a start or an alarm in which no drift is declared, at least 1.

    Raises:
        InputError: ``drift-parameters``.
        UnavailableError: ``extra-missing`` without river.
    """

    kind: ClassVar[str] = "loss"

    def __init__(self, delta: float = 1e-9, warm_up: int = 100) -> None:
        _positive(delta=delta, warm_up=warm_up)
        self.delta, self.warm_up = delta, warm_up
        self.restart()

    def restart(self) -> None:
        """Forget all values; see :class:`Detector`."""
        self._seen = 0
        self._test = AdwinTest(self.delta)

    def update(self, values: NDArray[Any]) -> tuple[int, ...]:
        """Take losses ``(n,)``; see :class:`Detector`."""
        alarms = []
        for row, value in enumerate(_checked(values, 1).tolist()):
            self._seen += 1
            if self._test.update(value) and self._seen > self.warm_up:
                alarms.append(row)
                self.restart()
        return tuple(alarms)

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        parameters = {"delta": self.delta, "warm_up": self.warm_up}
        return {"kind": self.kind, **parameters, "seen": self._seen, "test": self._test.state()}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._seen = _count(state["seen"])
        self._test.load(state["test"])


class LabelFreeDrift:
    """Changes of signals that need no label, given the predicted class.

    Each window's signals are standardised by all earlier windows *of the same class on this device*
    (an activity that becomes more frequent is no drift), averaged over blocks (neighbouring windows
    are alike), and the blocks standardised by all earlier blocks. A test for a change in the mean
    then runs over each signal; any of them raises the alarm.

    Args:
        columns: Signals, from 1; :func:`fleet.continual.signals.signals` gives 2.
        test: ``cusum``: Page, "Continuous Inspection Schemes", Biometrika 1954,
            doi:10.1093/biomet/41.1-2.100, two-sided; ``page-hinkley`` and ``adwin``: river's.
        parameter: Of cusum and page-hinkley the limit, in standard deviations of a block, of adwin
            its delta. None for the test's default.
        block: Windows per block.
        warm_up: Windows after a start or an alarm that are only learned from, at least 10 blocks.

    Raises:
        InputError: ``drift-parameters``.
        UnavailableError: ``extra-missing`` for a test of river's without river.
    """

    kind: ClassVar[str] = "label-free"

    def __init__(
        self,
        columns: int = 2,
        test: TestName = "cusum",
        parameter: float | None = None,
        block: int = 10,
        warm_up: int = 400,
    ) -> None:
        if test not in TESTS:
            rule = f"there is no test {test!r}"
            raise InputError("drift-parameters", rule, f"Known: {', '.join(TESTS)}.")
        self.parameter = TESTS[test].default if parameter is None else parameter
        _positive(columns=columns, block=block, parameter=self.parameter)
        if warm_up < 10 * block:
            rule = f"warm_up must be 10 blocks of {block} at least, not {warm_up}"
            raise InputError("drift-parameters", rule, "Give smaller blocks or more windows.")
        self.columns, self.test, self.block, self.warm_up = columns, test, block, warm_up
        self.restart()

    def restart(self) -> None:
        """Forget what was normal; see :class:`Detector`."""
        self._seen = 0
        self._classes: dict[int, Running] = {}
        self._all = Running(self.columns)
        self._block = Running(self.columns)
        self._blocks = Running(self.columns)
        self._tests = [TESTS[self.test](self.parameter) for _ in range(self.columns)]

    def update(self, values: NDArray[Any]) -> tuple[int, ...]:
        """Take ``(n, 1 + columns)``: the predicted class, then signals; see :class:`Detector`."""
        rows = _checked(values, 2, 1 + self.columns)
        labels = rows[:, 0]
        if ((labels < 0) | (labels >= MAX_CLASSES) | (labels % 1 != 0)).any():
            raise _bad_values(f"column 0 must hold classes 0 to {MAX_CLASSES - 1}")
        alarms = []
        for row, (label, *signals) in enumerate(rows.tolist()):
            self._learn(int(label), signals)
            if self._seen % self.block == 0 and self._end_block():
                alarms.append(row)
                self.restart()
        return tuple(alarms)

    def _learn(self, label: int, signals: list[float]) -> None:
        """Put a window, standardised by its class's earlier ones, into the block."""
        own = self._classes.setdefault(label, Running(self.columns))
        if own.count >= FIRST_OF_CLASS:
            self._block.add(own.standardised(signals, self._all, BORROWED))
        # The spread about the class's mean, not about that of all classes.
        self._all.add_squares(own.add(signals))
        self._seen += 1

    def _end_block(self) -> bool:
        """Judge a whole block by all earlier ones; tell whether a test declares drift."""
        if not self._block.count:
            return False
        means, self._block = self._block.mean, Running(self.columns)
        drift = False
        if self._seen > self.warm_up and self._blocks.count >= self.warm_up // self.block // 2:
            judged = self._blocks.standardised(means, self._blocks, 0)
            clipped = [min(max(value, -CLIP), CLIP) for value in judged]
            found = [test.update(v) for test, v in zip(self._tests, clipped, strict=True)]
            drift = any(found)
        self._blocks.add(means)
        return drift

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        names = ("columns", "test", "parameter", "block", "warm_up")
        return {
            "kind": self.kind,
            **{name: getattr(self, name) for name in names},
            "seen": self._seen,
            "classes": {str(label): each.state() for label, each in self._classes.items()},
            "running": [each.state() for each in (self._all, self._block, self._blocks)],
            "tests": [test.state() for test in self._tests],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._seen = _count(state["seen"])
        found = {int(key): Running.of(self.columns, s) for key, s in state["classes"].items()}
        if len(found) > MAX_CLASSES:
            raise ValueError(f"{len(found)} classes")
        self._classes = found
        three = [Running.of(self.columns, each) for each in state["running"]]
        self._all, self._block, self._blocks = three
        for test, each in zip(self._tests, state["tests"], strict=True):
            test.load(each)


DETECTORS: dict[str, type[LossDrift] | type[LabelFreeDrift]] = {
    each.kind: each for each in (LossDrift, LabelFreeDrift)
}
"""Every detector by its kind; tests hold each of them to the laws."""

_PARAMETERS = {
    "loss": ("delta", "warm_up"),
    "label-free": ("columns", "test", "parameter", "block", "warm_up"),
}


def restore(state: Mapping[str, Any]) -> Detector:
    """Make the detector whose :meth:`Detector.state` this was.

    Raises:
        StorageError: ``bad-detector`` for what no detector gave.
        UnavailableError: ``extra-missing`` for one of river's without river.
    """
    try:
        kind = state["kind"]
        detector = DETECTORS[kind](**{name: state[name] for name in _PARAMETERS[kind]})
        detector._load(state)
    except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        hint = "Start with a new detector; it warms up again."
        text = f"this is no state of a drift detector: {error!r}"
        raise StorageError("bad-detector", text, hint) from error
    return detector


def _checked(values: NDArray[Any], dimensions: int, width: int = 0) -> NDArray[np.float64]:
    rows = np.asarray(values, np.float64)
    if rows.ndim != dimensions or (width and rows.shape[1] != width):
        raise _bad_values(f"expected (n,{f' {width}' if width else ''}), not {rows.shape}")
    if not np.isfinite(rows).all():
        raise _bad_values("values must be finite")
    return rows


def _bad_values(rule: str) -> InputError:
    return InputError("drift-values", rule, "See fleet.continual.signals.")


def _positive(**named: float) -> None:
    for name, value in named.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError("drift-parameters", f"{name} must be positive, not {value}", "")


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"no count: {value!r}")
    return value
