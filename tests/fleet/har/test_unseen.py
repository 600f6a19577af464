from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fleet.errors import DataError
from fleet.har import synthetic
from fleet.har.dataset import DataSet, digest
from fleet.har.unseen import hold_out_classes, splittable


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    return synthetic.make(people=4, windows_per_activity=3)


def with_counts(make: Callable[..., DataSet], counts: list[list[int]]) -> DataSet:
    """A data set of ``counts[person][class]`` windows."""
    pairs = [
        (person, label)
        for person, of_person in enumerate(counts, 1)
        for label, count in enumerate(of_person)
        for _ in range(count)
    ]
    subject, y = (np.array(column, np.int16) for column in zip(*pairs, strict=True))
    labels = tuple("abcdefg"[: len(counts[0])])
    return make(len(pairs), labels=labels, subject=subject, y=y)


@pytest.mark.parametrize("chosen", [1, 3, ["lying"], ("sitting", "running"), "walking"])
def test_seen_classes_come_first_and_every_window_keeps_its_label(
    dataset: DataSet, chosen: int | str | list[str]
) -> None:
    split = hold_out_classes(dataset, chosen, seed=0)
    assert split.dataset.labels == split.seen + split.unseen
    assert sorted(split.dataset.labels) == sorted(dataset.labels)
    assert split.seen == tuple(label for label in dataset.labels if label not in split.unseen)
    before, after = (np.array(d.labels)[d.y] for d in (dataset, split.dataset))
    assert (before == after).all()
    assert (split.dataset.x == dataset.x).all()


def test_the_base_sees_only_seen_classes_under_the_same_indices(dataset: DataSet) -> None:
    split = hold_out_classes(dataset, 3, seed=0)
    kept = split.dataset.y < len(split.seen)
    assert split.base.labels == split.seen
    assert (split.base.y == split.dataset.y[kept]).all()
    assert (split.base.x == split.dataset.x[kept]).all()


def test_names_are_held_out_in_their_order(dataset: DataSet) -> None:
    split = hold_out_classes(dataset, ["sitting", "running"], seed=0)
    assert split.unseen == ("sitting", "running")
    other = hold_out_classes(dataset, ["sitting", "running"], seed=1)
    assert digest(split.dataset) == digest(other.dataset)


def test_the_seed_draws_the_classes_and_fewer_are_the_first_of_more(dataset: DataSet) -> None:
    drawn = [hold_out_classes(dataset, 3, seed=seed).unseen for seed in range(10)]
    assert drawn == [hold_out_classes(dataset, 3, seed=seed).unseen for seed in range(10)]
    assert len(set(drawn)) > 1
    assert hold_out_classes(dataset, 2, seed=4).unseen == drawn[4][:2]


def test_a_class_with_two_windows_from_most_people_can_be_split(
    make_dataset: Callable[..., DataSet],
) -> None:
    #                                   a  b  c  d
    few = with_counts(make_dataset, [[4, 2, 2, 1], [4, 2, 2, 1], [4, 1, 2, 1], [4, 0, 0, 9]])
    assert splittable(few) == ("a", "c")  # of b exactly half of the people have two
    assert {hold_out_classes(few, 1, seed=seed).unseen for seed in range(8)} == {("a",), ("c",)}
    with pytest.raises(DataError, match="but b, d has not") as caught:
        hold_out_classes(few, ["b", "d"], seed=0)
    assert caught.value.code == "unsplittable-class"
    assert caught.value.hint == "Choose among a, c."


@pytest.mark.parametrize("chosen", [0, -1, 6, 100, []])
def test_a_count_that_leaves_too_few_classes_or_none_to_learn_is_refused(
    dataset: DataSet, chosen: int | list[str]
) -> None:
    with pytest.raises(DataError, match="at least 1 and at most 5") as caught:
        hold_out_classes(dataset, chosen, seed=0)
    assert caught.value.code == "bad-class-count"


def test_no_more_classes_are_drawn_than_can_be_split(make_dataset: Callable[..., DataSet]) -> None:
    few = with_counts(make_dataset, [[4, 2, 1, 1, 1], [4, 1, 1, 1, 1]])
    with pytest.raises(DataError, match=r"at most 1 classes .* 1 of 5 have 2 windows"):
        hold_out_classes(few, 2, seed=0)


@pytest.mark.parametrize("names", [["flying"], ["lying", "lying"]])
def test_unknown_and_repeated_names_are_refused_with_the_known_ones(
    dataset: DataSet, names: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        hold_out_classes(dataset, names, seed=0)
    assert caught.value.code == "unknown-label"
    assert "stairs_up" in caught.value.hint
