"""Classes that the base has never seen: held out now, to be learned by the fleet later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleet.errors import DataError
from fleet.har.dataset import DataSet, select_labels
from fleet.seeds import generator

__all__ = ["UnseenSplit", "hold_out_classes", "splittable"]

MIN_SEEN = 2
MIN_WINDOWS = 2


@dataclass(frozen=True, eq=False)
class UnseenSplit:
    """A data set whose seen classes come first, so that appended classes move none of them.

    Attributes:
        dataset: All windows; its labels are ``seen + unseen``, and ``y`` indexes them.
        seen: Labels of the base, in the order of the original data set.
        unseen: Labels that were held out, in the order in which to append them.
    """

    dataset: DataSet
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def base(self) -> DataSet:
        """Only the windows of seen classes, with the same indices: what the base is trained on."""
        return select_labels(self.dataset, self.seen)


def splittable(dataset: DataSet) -> tuple[str, ...]:
    """Return the labels that can be both learned and measured, in the data set's order.

    Such a class has two windows or more from more than half of all people: of a single one the
    chronological split leaves nothing to test on.
    """
    people = np.array(dataset.subjects)
    common = []
    for index, label in enumerate(dataset.labels):
        wearers = dataset.subject[dataset.y == index]
        enough = (wearers[:, None] == people).sum(axis=0) >= MIN_WINDOWS
        if 2 * enough.sum() > len(people):
            common.append(label)
    return tuple(common)


def hold_out_classes(
    dataset: DataSet, count_or_names: int | str | Sequence[str], *, seed: int
) -> UnseenSplit:
    """Hold classes out of a data set and put them behind the others.

    Args:
        dataset: The data set.
        count_or_names: How many classes to draw at random among the :func:`splittable` ones; of the
            same seed, fewer are the first of more. Or their labels, in the order in which to append
            them.
        seed: The run's seed; names do not need it.

    Returns:
        The reindexed data set, no window dropped, and both groups of labels.

    Raises:
        DataError: ``unknown-label`` for names that the data set lacks or that come twice,
            ``unsplittable-class`` for names that are not splittable, ``bad-class-count`` for a
            number below 1, above that of splittable classes, or that leaves fewer than two seen.
    """
    common = splittable(dataset)
    if isinstance(count_or_names, int):
        _check_count(dataset, count_or_names, len(common))
        # Sorted, so that the order of a data set's labels does not decide which are drawn.
        drawn = generator(seed, 0, "fleet", "unseen").permutation(sorted(common))
        unseen = tuple(str(label) for label in drawn[:count_or_names])
    else:
        names = (count_or_names,) if isinstance(count_or_names, str) else count_or_names
        unseen = tuple(names)
        _check_names(dataset, unseen, common)
        _check_count(dataset, len(unseen), len(common))
    seen = tuple(label for label in dataset.labels if label not in unseen)
    return UnseenSplit(select_labels(dataset, (*seen, *unseen)), seen, unseen)


def _check_count(dataset: DataSet, count: int, splittable_classes: int) -> None:
    largest = min(splittable_classes, len(dataset.labels) - MIN_SEEN)
    if not 1 <= count <= largest:
        raise DataError(
            "bad-class-count",
            f"of {dataset.name} at least 1 and at most {largest} classes can be held out, not"
            f" {count}: {splittable_classes} of {len(dataset.labels)} have {MIN_WINDOWS} windows or"
            f" more from most people, and {MIN_SEEN} must stay",
            "Hold out fewer classes, or use a data set with more.",
        )


def _check_names(dataset: DataSet, names: Sequence[str], common: Sequence[str]) -> None:
    problems = [f"no label {name!r}" for name in names if name not in dataset.labels]
    if len(set(names)) != len(names):
        problems.append(f"labels must be unique, not {list(names)}")
    if problems:
        known = f"Labels of {dataset.name}: {', '.join(dataset.labels)}."
        raise DataError.listing("unknown-label", dataset.name, problems, known)
    rare = [name for name in names if name not in common]
    if rare:
        raise DataError(
            "unsplittable-class",
            f"a class to hold out needs {MIN_WINDOWS} windows or more from most people of"
            f" {dataset.name}, but {', '.join(rare)} has not",
            f"Choose among {', '.join(common) or 'another data set'}.",
        )
