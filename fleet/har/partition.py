"""Who is who: source people, fleet people, and each device's own past and future."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError
from fleet.har.dataset import DataSet
from fleet.seeds import generator

__all__ = ["Share", "chronological", "device_name", "pool", "split_people"]

MIN_SOURCE = 2
MIN_FLEET = 1

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Share:
    """One device's windows, as ascending rows of the data set.

    Attributes:
        name: Device name, e.g. ``person-07``.
        subject: The person.
        train: int64 ``[k]``, the past: what the device learns from.
        test: int64 ``[m]``, the future: what it is measured on.
    """

    name: str
    subject: int
    train: Rows
    test: Rows

    @property
    def usable(self) -> bool:
        """Whether the device can both learn and be measured."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the share is not usable; empty when it is."""
        empty = [name for name in ("train", "test") if len(getattr(self, name)) == 0]
        return f"{self.name} has no {' and no '.join(empty)} windows" if empty else ""


def device_name(subject: int) -> str:
    """Name the device of a person.

    >>> device_name(7)
    'person-07'
    """
    return f"person-{subject:02d}"


def split_people(
    subjects: Iterable[int], seed: int, fleet_fraction: float = 0.5
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Divide people at random into those who train the base and those who form the fleet.

    Args:
        subjects: All people; their order does not matter.
        seed: The run's seed.
        fleet_fraction: Share of the people in the fleet, rounded down to whole people.

    Returns:
        ``(source, fleet)``, each ascending; disjoint, together all people.

    Raises:
        DataError: ``too-few-people`` unless at least two source people and one of the fleet result.
    """
    people = np.array(sorted(set(subjects)), dtype=np.int64)
    if not (math.isfinite(fleet_fraction) and 0 < fleet_fraction < 1):
        raise DataError("bad-fraction", f"fleet_fraction must be in (0, 1), not {fleet_fraction}")
    # The nudge keeps e.g. 0.3 * 10 at 3 although the product lies below it.
    fleet_size = math.floor(len(people) * fleet_fraction + 1e-9)
    if fleet_size < MIN_FLEET or len(people) - fleet_size < MIN_SOURCE:
        raise DataError(
            "too-few-people",
            f"{len(people)} people at fleet_fraction {fleet_fraction} give"
            f" {len(people) - fleet_size} source and {fleet_size} fleet people, but at least"
            f" {MIN_SOURCE} and {MIN_FLEET} are needed",
            "Use a data set with more people, or another fraction.",
        )
    shuffled = generator(seed, 0, "fleet", "people").permutation(people).tolist()
    return tuple(sorted(shuffled[fleet_size:])), tuple(sorted(shuffled[:fleet_size]))


def pool(dataset: DataSet, subjects: Iterable[int]) -> Rows:
    """Return the rows of some people, ascending, int64 ``[k]``.

    Raises:
        DataError: ``unknown-subject``, or ``no-windows`` for no people.
    """
    wanted = set(subjects)
    unknown = sorted(wanted - set(dataset.subjects))
    if unknown:
        known = f"People of {dataset.name}: {', '.join(map(str, dataset.subjects))}."
        raise DataError("unknown-subject", f"{dataset.name} has no subject {unknown}", known)
    if not wanted:
        raise DataError("no-windows", "no people were named, so there are no windows")
    return np.flatnonzero(np.isin(dataset.subject, sorted(wanted))).astype(np.int64)


def chronological(dataset: DataSet, subject: int, train_fraction: float = 0.6) -> Share:
    """Split a person's windows by time: of every class the first part trains, the rest tests.

    Time is the order of ``(rec, row)``. At least one window of a class goes to each side; the only
    window of a class goes to train, and that class is then absent from the test. A training window
    is dropped when it may share samples with a test window: fewer than ``ceil(window / stride)``
    rows away in the same recording, unless the samples prove that they do not overlap. The same
    holds for exact copies of test windows, so that a recording stored twice does not leak.

    Args:
        dataset: Rows of one ``rec`` are in time order, at multiples of the stride.
        subject: The person.
        train_fraction: Of each class's windows, rounded down.

    Returns:
        The share; check ``usable``.

    Raises:
        DataError: ``unknown-subject`` or ``bad-fraction``.
    """
    if not (math.isfinite(train_fraction) and 0 < train_fraction < 1):
        raise DataError("bad-fraction", f"train_fraction must be in (0, 1), not {train_fraction}")
    rows = pool(dataset, [subject])
    rows = rows[np.argsort(dataset.rec[rows], kind="stable")]
    is_test = np.zeros(len(rows), dtype=np.bool_)
    for label in np.unique(dataset.y[rows]):
        places = np.flatnonzero(dataset.y[rows] == label)
        first = math.floor(len(places) * train_fraction + 1e-9)
        is_test[places[min(max(first, 1), max(len(places) - 1, 1)) :]] = True
    leaks = _leaking(dataset, rows, is_test)
    train, test = rows[~is_test & ~leaks], rows[is_test]
    return Share(device_name(subject), subject, np.sort(train), np.sort(test))


def _leaking(dataset: DataSet, rows: Rows, is_test: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the rows (in time order) that copy a test window or may overlap one, or its copy."""
    contents = [dataset.x[row].tobytes() for row in rows]
    tested = {content for content, test in zip(contents, is_test, strict=True) if test}
    forbidden = np.array([content in tested for content in contents], dtype=np.bool_)
    leaks = forbidden & ~is_test
    reach = math.ceil(dataset.window / dataset.stride)
    rec = dataset.rec[rows]
    for distance in range(1, reach):
        earlier = np.arange(len(rows) - distance)
        later = earlier + distance
        near = (rec[earlier] == rec[later]) & (forbidden[earlier] != forbidden[later])
        for first, second in zip(earlier[near], later[near], strict=True):
            if _may_overlap(dataset, rows[first], rows[second]):
                leaks[second if forbidden[first] else first] = True
    return leaks & ~is_test


def _may_overlap(dataset: DataSet, earlier: int, later: int) -> bool:
    """Tell whether two windows agree on the samples they would share at any whole stride."""
    first, second = dataset.x[earlier], dataset.x[later]
    shifts: Sequence[int] = range(dataset.stride, dataset.window, dataset.stride)
    return any(
        np.array_equal(first[:, shift:], second[:, : dataset.window - shift]) for shift in shifts
    )
