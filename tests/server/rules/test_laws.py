"""What holds of every rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import MismatchError, RoundError
from fleet.federate.rule import RULES, read_rule
from server.rules import NOTHING
from tests.server.rules.making import SIZE, closed, cohort, deltas_of, moved, release, update

SPELT = (
    "mean",
    "clip:0.1",
    "momentum:0.9",
    "adam:0.01",
    "yogi:0.01",
    "median",
    "trimmed:0.2",
    "krum:2",
    "multikrum:2",
)
# A round of Flower's messages takes milliseconds.
FEW = 8
ROBUST = ("median", "trimmed:0.3", "krum:3", "multikrum:3")

every_rule = pytest.mark.parametrize("rule", SPELT)


@every_rule
@given(order=st.permutations(range(9)), seed=st.integers(0, 50))
@settings(max_examples=FEW)
def test_no_order_of_arrival_shows_in_the_result(rule: str, order: list[int], seed: int) -> None:
    updates = cohort(9, seed)
    names = list(updates)
    shuffled = {names[n]: updates[names[n]] for n in order}
    one, other = closed(rule, updates), closed(rule, shuffled)
    assert one.mean.tobytes() == other.mean.tobytes()
    assert (one.memory.digest, one.record) == (other.memory.digest, other.record)


@every_rule
def test_a_result_has_the_layout_s_size_and_is_an_integer_of_steps(rule: str) -> None:
    found = closed(rule, cohort(9)).mean
    assert (found.shape, found.dtype) == ((SIZE,), np.int64)


@every_rule
def test_a_rule_changes_neither_release_nor_updates_nor_memory(rule: str) -> None:
    start, updates = release(), cohort(9)
    memory = closed(rule, updates, start).memory
    before = (start.state.digest, memory.digest, [u.steps.tobytes() for u in updates.values()])
    memory_bits = {name: array.tobytes() for name, array in memory.arrays.items()}
    closed(rule, updates, start, memory)
    after = (start.state.digest, memory.digest, [u.steps.tobytes() for u in updates.values()])
    assert before == after
    assert memory_bits == {name: array.tobytes() for name, array in memory.arrays.items()}


@every_rule
def test_only_a_rule_that_says_so_remembers(rule: str) -> None:
    memory = closed(rule, cohort(9)).memory
    assert (memory is not NOTHING) == read_rule(rule).remembers
    assert (memory.steps == 1) == read_rule(rule).remembers


@pytest.mark.parametrize("rule", ["mean", "clip:9", "median", "trimmed:0.2", "krum:2"])
def test_where_all_send_the_same_a_rule_that_does_not_step_returns_it(rule: str) -> None:
    delta = np.linspace(-0.3, 0.4, SIZE, dtype=np.float32)
    same = {f"d{n}": update(f"d{n}", delta, n + 1) for n in range(9)}
    np.testing.assert_array_equal(closed(rule, same).mean, same["d0"].steps)


@pytest.mark.parametrize("rule", ROBUST)
@given(seed=st.integers(0, 50), factor=st.floats(1, 40))
@settings(max_examples=FEW)
def test_a_robust_rule_stays_among_the_honest_when_three_of_ten_lie(
    rule: str, seed: int, factor: float
) -> None:
    updates = cohort(10, seed, liars=3, factor=factor)
    honest = deltas_of(updates)[3:]
    found = moved(rule, updates)
    assert (found >= honest.min(axis=0) - 1e-9).all()
    assert (found <= honest.max(axis=0) + 1e-9).all()


@pytest.mark.parametrize("rule", ["mean", "momentum:0.9"])
def test_a_mean_is_carried_away_by_the_same_liars(rule: str) -> None:
    updates = cohort(10, liars=3)
    assert (moved(rule, updates) < deltas_of(updates)[3:].min(axis=0)).any()


@pytest.mark.parametrize("rule", [each for each in SPELT if not read_rule(each).remembers])
def test_a_result_does_not_depend_on_where_the_release_stands(rule: str) -> None:
    updates = cohort(9)
    there = [closed(rule, updates, release(seed, scale)) for seed, scale in ((1, 0), (2, 3.0))]
    np.testing.assert_allclose(there[0].mean, there[1].mean, atol=1)


def test_a_step_that_no_release_could_keep_is_refused_and_not_wrapped() -> None:
    far = {"a": update("a", np.full(SIZE, 7.9))}
    memory = closed("momentum:0.9", far).memory
    with pytest.raises(MismatchError) as caught:
        closed("momentum:0.9", far, memory=memory)
    assert caught.value.code == "entry-too-large"


def test_the_memory_of_another_rule_or_layout_is_refused() -> None:
    memory = closed("adam:0.01", cohort(3)).memory
    for rule in ("adam:0.02", "yogi:0.01"):
        with pytest.raises(MismatchError, match=r"adam:0\.01") as caught:
            closed(rule, cohort(3), memory=memory)
        assert caught.value.code == "other-memory"
    with pytest.raises(MismatchError, match="first has"):
        memory.of_rule("adam:0.01", SIZE + 1)


@pytest.mark.parametrize("rule", ["median", "krum:0", "mean"])
def test_nothing_cannot_be_aggregated(rule: str) -> None:
    with pytest.raises((RoundError, MismatchError)):
        closed(rule, {})


def test_every_rule_is_spelt_here() -> None:
    assert {each.partition(":")[0] for each in RULES} == {each.partition(":")[0] for each in SPELT}


def test_devices_that_score_alike_are_told_apart_by_name_and_not_by_arrival() -> None:
    # Each has one nearest neighbour at the same distance, exactly.
    updates = {name: update(name, np.full(SIZE, n / 4)) for n, name in enumerate("abc")}
    backwards = dict(reversed(updates.items()))
    found = [closed("krum:0", each, release(scale=0)).record for each in (updates, backwards)]
    assert found == [{"followed": ["a"]}] * 2
