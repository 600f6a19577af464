from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.seeds import derive_seed, generator, sample

NAMES = st.tuples(
    st.integers(0, 2**40), st.integers(0, 1000), st.text(max_size=5), st.text(max_size=5)
)


@pytest.mark.parametrize(
    ("names", "seed"),
    [
        ((0, 1, "person-07", "batches"), 4500157009923669681),
        ((42, 0, "server", "base/weights"), 3078265355592329346),
        ((0, 0, "fleet", "split"), 6027012473390150691),
        ((2**70, 0, "é", ""), 3987392068920513223),
    ],
)
def test_a_seed_is_the_golden_one(names: tuple[int, int, str, str], seed: int) -> None:
    assert derive_seed(*names) == seed


def test_the_first_numbers_of_a_generator_are_the_golden_ones() -> None:
    rng = generator(0, 1, "person-07", "batches")
    assert rng.integers(0, 1000, 4).tolist() == [883, 861, 260, 906]


@given(names=NAMES)
def test_a_seed_fits_a_signed_64_bit_integer_and_repeats(names: tuple[int, int, str, str]) -> None:
    seed = derive_seed(*names)
    assert 0 <= seed < 2**63
    assert derive_seed(*names) == seed


@given(one=NAMES, other=NAMES)
def test_other_names_give_other_seeds(
    one: tuple[int, int, str, str], other: tuple[int, int, str, str]
) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


def test_names_cannot_trade_characters_with_their_neighbours() -> None:
    seeds = {
        derive_seed(0, 1, "a", "b/c"),
        derive_seed(0, 1, "a/b", "c"),
        derive_seed(0, 1, "", "a/b/c"),
        derive_seed(0, 11, "a", "b/c"),
        derive_seed(1, 1, "a", "b/c"),
    }
    assert len(seeds) == 5


def test_two_generators_of_one_name_are_independent_objects() -> None:
    one, other = generator(0, 1, "a", "b"), generator(0, 1, "a", "b")
    one.random(10)
    assert other.random() == generator(0, 1, "a", "b").random()


@given(
    names=st.sets(st.text(max_size=4), max_size=20),
    gone=st.sets(st.text(max_size=4), max_size=5),
    count=st.integers(0, 25),
)
def test_a_sample_keeps_all_members_that_are_left_when_names_go(
    names: set[str], gone: set[str], count: int
) -> None:
    before = sample(names, count, 0, "evaluation")
    assert before == sorted(before)
    assert set(before) <= names
    assert len(before) == (min(count, len(names)) if count else len(names))
    assert set(before) - gone <= set(sample(names - gone, count, 0, "evaluation"))


def test_every_name_comes_into_some_sample() -> None:
    names = [f"device-{number:05d}" for number in range(40)]
    seen = {name for seed in range(40) for name in sample(names, 10, seed, "evaluation")}
    assert seen == set(names)
