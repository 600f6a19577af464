from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError

LAYOUT = Layout.of({"head.bias": (2,), "conv1.core": (3, 2)})
# Multiples of 1/8 below 1,024: every sum of a few is exact in float32.
EXACT = st.integers(-8192, 8192).map(lambda n: n / 8)
ANY = st.floats(-1e6, 1e6, width=32)


def states(elements: st.SearchStrategy[float]) -> st.SearchStrategy[CoreState]:
    flats = hnp.arrays(np.float32, LAYOUT.size, elements=elements)
    return flats.map(lambda flat: CoreState.from_flat(LAYOUT, flat))


def equal(one: CoreState, two: CoreState) -> bool:
    return one.layout == two.layout and bool((one.flat() == two.flat()).all())


@given(a=states(ANY), b=states(ANY))
def test_addition_is_commutative(a: CoreState, b: CoreState) -> None:
    assert equal(a + b, b + a)


@given(a=states(EXACT), b=states(EXACT), c=states(EXACT))
def test_addition_is_associative_where_it_is_exact(
    a: CoreState, b: CoreState, c: CoreState
) -> None:
    assert equal((a + b) + c, a + (b + c))
    assert equal((a + b) - b, a)


@given(a=states(ANY))
def test_zero_is_neutral_and_every_state_has_its_negative(a: CoreState) -> None:
    zero = CoreState.zero(LAYOUT)
    assert equal(a + zero, a)
    assert equal(a - zero, a)
    assert equal(a - a, zero)
    assert equal(a + a.scale(-1.0), zero)


@given(a=states(EXACT), b=states(EXACT))
def test_scaling_is_linear(a: CoreState, b: CoreState) -> None:
    assert equal((a + b).scale(0.5), a.scale(0.5) + b.scale(0.5))
    assert equal(a.scale(2.0), a + a)
    assert equal(a.scale(0.0), CoreState.zero(LAYOUT))


@given(a=states(ANY))
def test_flat_and_from_flat_are_inverse(a: CoreState) -> None:
    again = CoreState.from_flat(a.layout, a.flat())
    assert again.digest == a.digest
    assert again.flat().tobytes() == a.flat().tobytes()


@given(a=states(ANY), b=states(ANY))
def test_adding_commutes_with_flattening(a: CoreState, b: CoreState) -> None:
    np.testing.assert_array_equal((a + b).flat(), a.flat() + b.flat())


def test_the_flat_array_packs_the_entries_by_name() -> None:
    state = CoreState.of(
        {"b": np.array([[3.0, 4.0]], np.float32), "a": np.array([1.0, 2.0], np.float32)}
    )
    assert state.layout.names == ("a", "b")
    np.testing.assert_array_equal(state.flat(), [1, 2, 3, 4])


def test_a_state_without_entries_is_a_space_of_its_own() -> None:
    empty = CoreState.of({})
    assert empty.flat().shape == (0,)
    assert (empty.layout.size, empty.norm, empty.finite) == (0, 0.0, True)
    assert (empty + empty).digest == empty.digest == CoreState.zero(Layout.of({})).digest


def test_entries_without_numbers_and_scalars_survive_flattening() -> None:
    state = CoreState.of({"a": np.zeros((0, 3), np.float32), "s": np.array(2.0, np.float32)})
    again = CoreState.from_flat(state.layout, state.flat())
    assert again.digest == state.digest
    assert again.arrays["s"].shape == ()


@pytest.mark.parametrize("count", [7, 9])
def test_a_flat_array_of_another_size_is_refused(count: int) -> None:
    with pytest.raises(MismatchError, match="has 8 entries") as caught:
        CoreState.from_flat(LAYOUT, np.zeros(count, np.float32))
    assert caught.value.code == "layout-size"


def test_a_flat_array_with_two_axes_is_refused() -> None:
    with pytest.raises(MismatchError) as caught:
        CoreState.from_flat(LAYOUT, np.zeros((8, 1), np.float32))
    assert caught.value.code == "layout-size"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"conv1.core": (2, 3), "head.bias": (2,)}, r"conv1.core \(3, 2\) and conv1.core \(2, 3\)"),
        ({"conv1.core": (3, 2), "head.b": (2,)}, r"head.bias \(2,\) and head.b \(2,\)"),
        ({"conv1.core": (3, 2)}, "2 and 1 entries"),
    ],
)
def test_states_of_two_layouts_do_not_add(other: dict[str, tuple[int, ...]], message: str) -> None:
    one, two = CoreState.zero(LAYOUT), CoreState.zero(Layout.of(other))
    for operate in (lambda: one + two, lambda: one - two):
        with pytest.raises(MismatchError, match=message) as caught:
            operate()
        assert caught.value.code == "layout-mismatch"


def test_the_layout_digest_depends_on_names_and_shapes_alone() -> None:
    shapes = {"a": (2, 3), "b": (4,)}
    digest = Layout.of(shapes).digest
    assert Layout.of(dict(reversed(shapes.items()))).digest == digest
    assert Layout.of({"a": (np.int64(2), 3), "b": (4,)}).digest == digest
    others = [{"a": (3, 2), "b": (4,)}, {"a": (2, 3), "c": (4,)}, {"a": (6,), "b": (4,)}, {}]
    assert len({digest, *(Layout.of(shapes).digest for shapes in others)}) == 5


def test_the_layout_digest_is_the_golden_one() -> None:
    assert LAYOUT.digest == "a030c5b7758d5c2e4dd063dad8e9e04c5fb675dc7f4e9a618e254447d5f90782"


def test_the_digest_depends_on_bits_names_shapes_and_dtype() -> None:
    ones = np.ones((2, 2), np.float32)
    variants = [
        CoreState.of({"a.core": ones}),
        CoreState.of({"b.core": ones}),
        CoreState.of({"a.core": ones.reshape(4, 1)}),
        CoreState.of({"a.core": ones.astype(np.float64)}),
        CoreState.of({"a.core": np.nextafter(ones, np.float32(2))}),
    ]
    assert len({state.digest for state in variants}) == 5


def test_the_digest_does_not_depend_on_insertion_order() -> None:
    a, b = np.ones(2, np.float32), np.zeros(3, np.float32)
    assert CoreState.of({"a": a, "b": b}).digest == CoreState.of({"b": b, "a": a}).digest


def test_the_digest_of_a_tiny_state_is_the_golden_one() -> None:
    state = CoreState.from_flat(LAYOUT, np.arange(8, dtype=np.float32) / 4)
    assert state.digest == "93631118224449d96725cc08d8793f35ad035f332e3a607fd23cc863a711b649"


def test_a_state_cannot_be_changed() -> None:
    given_array = np.ones((3, 2), np.float32)
    state = CoreState.of({"conv1.core": given_array})
    made = [state, CoreState.zero(LAYOUT), state + state, state.scale(2.0), state.astype("f8")]
    for one in made:
        with pytest.raises(ValueError, match="read-only"):
            one.arrays["conv1.core"][0, 0] = 5.0
        with pytest.raises(TypeError):
            one.arrays["new"] = given_array  # type: ignore[index]
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.layout = LAYOUT  # type: ignore[misc]
    given_array[:] = 7.0
    assert state.arrays["conv1.core"].max() == 1.0


def test_the_flat_array_is_a_copy() -> None:
    state = CoreState.zero(LAYOUT)
    state.flat()[:] = 1.0
    single = CoreState.of({"a": np.zeros(3, np.float32)})
    single.flat()[:] = 1.0
    assert state.norm == single.norm == 0.0


def test_from_flat_copies_what_it_is_given() -> None:
    flat = np.zeros(8, np.float32)
    state = CoreState.from_flat(LAYOUT, flat)
    flat[:] = 1.0
    assert state.norm == 0.0


def test_the_norm_is_that_of_the_flat_array_and_does_not_overflow() -> None:
    assert CoreState.of({"a": np.array([3.0]), "b": np.array([[4.0]])}).norm == 5.0
    assert CoreState.of({"a": np.full(4, 1e30, np.float32)}).norm == pytest.approx(2e30, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_entry_makes_a_state_not_finite(bad: float) -> None:
    flat = np.zeros(8, np.float32)
    assert CoreState.from_flat(LAYOUT, flat).finite
    flat[-1] = bad
    assert not CoreState.from_flat(LAYOUT, flat).finite


def test_the_dtype_is_kept_by_every_operation() -> None:
    for dtype in (np.float32, np.float64):
        state = CoreState.zero(LAYOUT, dtype)
        for made in (state + state, state - state, state.scale(0.1), CoreState.of(state.arrays)):
            assert made.flat().dtype == dtype
    assert CoreState.zero(LAYOUT).astype(np.float64).flat().dtype == np.float64
