from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.adapt.digest import digest_arrays
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.merge import merge, merge_kernel
from fleet.adapt.state import CoreState
from fleet.errors import FrameError, MismatchError

KINDS: tuple[FrameKind, ...] = ("svd", "tt")
# (kernel, groups)
SHAPES = [((6, 4, 3), 1), ((8, 2, 3), 2), ((4, 3, 2, 2), 1), ((6, 5), 1)]


def kernel_of(shape: tuple[int, ...], dtype: str = "f8", seed: int = 0) -> NDArray[np.floating]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def state_of(core: NDArray[np.floating]) -> CoreState:
    return CoreState.of({"conv.core": core})


def naive(
    kernel: NDArray[np.floating], frame: Frame, core: NDArray[np.floating]
) -> NDArray[np.float64]:
    outputs = kernel.shape[0] // frame.groups
    rows = []
    for o in range(kernel.shape[0]):
        group = o // outputs
        if frame.kind == "svd":
            mixed = frame.array[group].astype(np.float64)
            block = kernel[group * outputs : (group + 1) * outputs].astype(np.float64)
            suffix = np.tensordot(mixed, block, axes=1)
        else:
            suffix = frame.array.astype(np.float64)
        rows.append(kernel[o].astype(np.float64) + np.tensordot(core[o], suffix, axes=1))
    return np.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_a_merge_equals_the_naive_formula(
    shape: tuple[int, ...], groups: int, kind: FrameKind
) -> None:
    kernel = kernel_of(shape)
    frame = make_frame(kernel, kind, 2, groups=groups)
    core = np.random.default_rng(1).standard_normal((shape[0], 2))
    merged = merge_kernel(kernel, frame, core)
    np.testing.assert_allclose(merged, naive(kernel, frame, core), rtol=1e-12, atol=1e-14)


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), case=st.sampled_from(SHAPES))
@settings(deadline=None, max_examples=60)
def test_merging_a_sum_moves_by_the_sum_of_the_moves(
    seed: int, kind: FrameKind, case: tuple[tuple[int, ...], int]
) -> None:
    shape, groups = case
    rng = np.random.default_rng(seed)
    kernel = kernel_of(shape, seed=seed)
    frame = make_frame(kernel, kind, 2, groups=groups)
    a, b = (rng.standard_normal((shape[0], 2)) for _ in range(2))
    both, one, other = (merge_kernel(kernel, frame, core) for core in (a + b, a, b))
    scale = max(float(np.abs(k).max()) for k in (both, one, other, kernel))
    np.testing.assert_allclose(both - one, other - kernel, rtol=0, atol=1e-12 * scale)


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), devices=st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_the_mean_of_merged_kernels_is_the_merge_of_the_mean_core(
    seed: int, kind: FrameKind, devices: int
) -> None:
    kernel = kernel_of((6, 4, 3), seed=seed)
    frame = make_frame(kernel, kind, 3)
    cores = np.random.default_rng(seed).standard_normal((devices, 6, 3))
    mean = np.mean([merge_kernel(kernel, frame, core) for core in cores], axis=0)
    merged = merge_kernel(kernel, frame, cores.mean(axis=0))
    assert np.linalg.norm(mean - merged) < 1e-12 * np.linalg.norm(merged)


AWKWARD = np.array([-0.0, 0.0, 5e-324, -5e-324, 1e-310, 1.0, -1e300, 0.1])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_zero_is_the_base_bit_for_bit(kind: FrameKind, dtype: str) -> None:
    values = AWKWARD if dtype == "f8" else np.array([-0.0, 0.0, 1e-45, -1e-45, 1e-40, 1.0, -3e38])
    kernel = np.resize(values.astype(dtype), (5, 3, 3))
    frame = make_frame(kernel_of((5, 3, 3)), kind, 2)
    for zero in (np.zeros((5, 2), dtype), np.full((5, 2), -0.0, dtype)):
        assert merge_kernel(kernel, frame, zero).tobytes() == kernel.tobytes()
    bias = values.astype(dtype)
    state = CoreState.of({"conv.core": np.zeros((5, 2), dtype), "head.bias": np.zeros_like(bias)})
    merged = merge({"conv.weight": kernel, "head.bias": bias}, {"conv": frame}, state)
    assert merged["conv.weight"].tobytes() == kernel.tobytes()
    assert merged["head.bias"].tobytes() == bias.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_zero_core_row_leaves_its_kernel_row_untouched(kind: FrameKind, groups: int) -> None:
    kernel = kernel_of((6, 3, 3), "f4")
    kernel[2, 0, 0] = -0.0
    frame = make_frame(kernel, kind, 2, groups=groups)
    core = np.ones((6, 2), np.float32)
    core[2] = 0.0
    merged = merge_kernel(kernel, frame, core)
    assert merged[2].tobytes() == kernel[2].tobytes()
    for row in (0, 1, 3, 4, 5):
        assert (merged[row] != kernel[row]).any()


def test_a_zero_entry_of_a_dense_delta_leaves_its_parameter_untouched() -> None:
    bias = np.array([-0.0, 1.0, -0.0], np.float32)
    merged = merge({"b": bias}, {}, CoreState.of({"b": np.array([0.0, 0.5, 2.0], np.float32)}))
    np.testing.assert_array_equal(merged["b"], [0.0, 1.5, 2.0])
    np.testing.assert_array_equal(np.signbit(merged["b"]), [True, False, False])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_dtype_and_shape_of_the_kernel_are_kept(dtype: str) -> None:
    kernel = kernel_of((6, 4, 3), dtype)
    frame = make_frame(kernel, "svd", 2)
    for core_dtype in ("f4", "f8"):
        merged = merge_kernel(kernel, frame, np.ones((6, 2), core_dtype))
        assert (merged.dtype, merged.shape) == (kernel.dtype, kernel.shape)


def test_a_merge_placed_by_hand_reads_as_written() -> None:
    kernel = np.zeros((3, 2, 2), np.float32)
    kernel[0, 0, 0], kernel[1, 1, 1] = 2.0, 3.0
    # Direction 0 reads output 1, direction 1 reads output 0.
    frame = Frame("svd", 2, 1, np.array([[[0, 1, 0], [1, 0, 0]]], np.float32))
    core = np.zeros((3, 2), np.float32)
    core[2, 0], core[0, 1] = 10.0, 0.5
    merged = merge_kernel(kernel, frame, core)
    np.testing.assert_array_equal(merged[0], [[2 + 0.5 * 2, 0], [0, 0]])
    np.testing.assert_array_equal(merged[1], kernel[1])
    np.testing.assert_array_equal(merged[2], [[0, 0], [0, 10 * 3]])


def test_a_grouped_merge_placed_by_hand_stays_within_its_group() -> None:
    kernel = np.zeros((4, 1, 1), np.float32)
    kernel[0], kernel[2] = 1.0, 100.0
    frame = Frame("svd", 1, 2, np.array([[[1, 0]], [[1, 0]]], np.float32))
    merged = merge_kernel(kernel, frame, np.array([[0], [2], [0], [3]], np.float32))
    np.testing.assert_array_equal(merged.ravel(), [1, 2, 100, 300])


def test_the_digest_of_a_tiny_merged_kernel_is_the_golden_one() -> None:
    # No random generator and no linear algebra: only multiply, add and one rounding.
    kernel = (np.arange(24, dtype=np.float32).reshape(4, 3, 2) / 7 - 1).astype(np.float32)
    svd = Frame("svd", 2, 2, (np.arange(8, dtype=np.float32).reshape(2, 2, 2) / 3).astype("f4"))
    tt = Frame("tt", 2, 1, (np.arange(12, dtype=np.float32).reshape(2, 3, 2) / 11).astype("f4"))
    core = (np.arange(8, dtype=np.float32).reshape(4, 2) / 9).astype(np.float32)
    digests = [digest_arrays({"k": merge_kernel(kernel, frame, core)}) for frame in (svd, tt)]
    assert digests == [
        "f0b8d7cf329a76658683f8279d4900e80ac66013d8e063fab789cb65fd9fc937",
        "69bcca063c0677853aeda46d3cb295ae3fe4b2a0caf57b7b8e11b578569dd984",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_rolling_back_and_forward_returns_the_same_bits(kind: FrameKind) -> None:
    kernel = kernel_of((6, 4, 3), "f4")
    frames = {"conv": make_frame(kernel, kind, 2)}
    base = {"conv.weight": kernel}
    before = kernel.tobytes()
    rng = np.random.default_rng(2)
    versions = [state_of(rng.standard_normal((6, 2)).astype("f4")) for _ in range(10)]
    served = {n: digest_arrays(merge(base, frames, versions[n])) for n in (5, 9)}
    for number in (5, 9, 5, 9, 5):
        assert digest_arrays(merge(base, frames, versions[number])) == served[number]
    assert served[5] != served[9]
    assert kernel.tobytes() == before


def test_a_core_narrower_than_its_frame_uses_the_leading_directions() -> None:
    kernel = kernel_of((6, 4, 3))
    frame = make_frame(kernel, "svd", 3)
    core = np.random.default_rng(3).standard_normal((6, 2))
    padded = np.concatenate([core, np.zeros((6, 1))], axis=1)
    np.testing.assert_array_equal(
        merge_kernel(kernel, frame, core), merge_kernel(kernel, frame, padded)
    )


def test_cores_and_dense_deltas_move_their_own_parameters_alone() -> None:
    kernel = kernel_of((6, 4, 3), "f4")
    base = {"conv.weight": kernel, "conv.bias": np.zeros(6, "f4"), "head.bias": np.ones(2, "f4")}
    state = CoreState.of({"conv.core": np.ones((6, 1), "f4"), "head.bias": np.full(2, 0.5, "f4")})
    merged = merge(base, {"conv": make_frame(kernel, "svd", 1)}, state)
    assert merged.keys() == base.keys()
    assert merged["conv.bias"] is base["conv.bias"]
    np.testing.assert_array_equal(merged["head.bias"], [1.5, 1.5])
    np.testing.assert_array_equal(base["head.bias"], [1.0, 1.0])
    assert (merged["conv.weight"] != kernel).any()


def test_a_core_and_a_dense_delta_of_one_kernel_both_move_it() -> None:
    kernel = kernel_of((6, 4, 3), "f8")
    frames = {"conv": make_frame(kernel, "svd", 1)}
    core, delta = CoreState.of({"conv.core": np.ones((6, 1))}), np.full((6, 4, 3), 0.25)
    both = CoreState.of({**core.arrays, "conv.weight": delta})
    alone = merge({"conv.weight": kernel}, frames, core)["conv.weight"]
    np.testing.assert_array_equal(
        merge({"conv.weight": kernel}, frames, both)["conv.weight"], alone + delta
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("other.core", (6, 2)),
        ("conv", (6, 2)),
        ("head.weight", (2, 6)),
        ("head.bias", (3,)),
        ("head.bias", (1,)),
        ("head.bias", ()),
    ],
)
def test_an_entry_that_fits_nothing_is_refused(name: str, shape: tuple[int, ...]) -> None:
    kernel = kernel_of((6, 4, 3), "f4")
    base = {"conv.weight": kernel, "head.bias": np.zeros(2, "f4")}
    with pytest.raises(MismatchError, match="fits no layer") as caught:
        merge(base, {"conv": make_frame(kernel, "svd", 2)}, CoreState.of({name: np.ones(shape)}))
    assert caught.value.code == "unknown-entry"
    assert name in caught.value.message


@pytest.mark.parametrize("shape", [(5, 2), (6,), (6, 2, 1), ()])
def test_a_core_that_does_not_fit_its_kernel_is_refused(shape: tuple[int, ...]) -> None:
    kernel = kernel_of((6, 4, 3), "f4")
    with pytest.raises(MismatchError) as caught:
        merge_kernel(kernel, make_frame(kernel, "svd", 2), np.ones(shape, "f4"))
    assert caught.value.code == "core-shape"


@pytest.mark.parametrize(("kind", "code"), [("svd", "rank-too-large"), ("tt", "frame-not-nested")])
def test_a_core_wider_than_its_frame_is_refused(kind: FrameKind, code: str) -> None:
    kernel = kernel_of((6, 4, 3), "f4")
    with pytest.raises(FrameError) as caught:
        merge_kernel(kernel, make_frame(kernel, kind, 2), np.ones((6, 3), "f4"))
    assert caught.value.code == code


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused(bad: float) -> None:
    kernel = kernel_of((6, 4, 3), "f4")
    core = np.zeros((6, 2), "f4")
    core[3, 1] = bad
    with pytest.raises(MismatchError) as caught:
        merge({"conv.weight": kernel}, {"conv": make_frame(kernel, "svd", 2)}, state_of(core))
    assert caught.value.code == "state-not-finite"
