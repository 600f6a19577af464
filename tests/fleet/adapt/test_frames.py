from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.adapt.frames import Frame, largest_rank, make_frame, tt_svd
from fleet.errors import FrameError


def kernel_of(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def with_spectrum(outputs: int, inputs: int, sigma: list[float]) -> NDArray[np.float64]:
    rng = np.random.default_rng(1)
    u, _ = np.linalg.qr(rng.standard_normal((outputs, len(sigma))))
    v, _ = np.linalg.qr(rng.standard_normal((inputs, len(sigma))))
    return (u * sigma) @ v.T


def naive_tt(tensor: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """Oseledets' algorithm as the paper draws it, contracted back to a full tensor."""
    cores, rest, bond = [], tensor, 1
    for width in tensor.shape[:-1]:
        u, s, vt = np.linalg.svd(rest.reshape(bond * width, -1), full_matrices=False)
        keep = min(rank, len(s))
        cores.append(u[:, :keep].reshape(bond, width, keep))
        rest, bond = np.diag(s[:keep]) @ vt[:keep], keep
    cores.append(rest.reshape(bond, tensor.shape[-1], 1))
    full = cores[0]
    for core in cores[1:]:
        full = np.einsum("...a,abc->...bc", full, core)
    return full[0, ..., 0]


def contracted(cores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    full = cores[0]
    for core in cores[1:]:
        full = np.tensordot(full, core, axes=1)
    return full


@pytest.mark.parametrize("shape", [(6, 5), (8, 4, 3), (5, 4, 3, 3), (4, 3, 2, 3, 2)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tt_svd_equals_the_naive_algorithm(shape: tuple[int, ...], rank: int) -> None:
    tensor = kernel_of(*shape)
    np.testing.assert_allclose(
        contracted(tt_svd(tensor, rank)), naive_tt(tensor, rank), rtol=0, atol=1e-12
    )


@given(shape=st.lists(st.integers(2, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_train_of_full_rank_is_the_tensor(shape: list[int], seed: int) -> None:
    tensor = kernel_of(*shape, seed=seed)
    np.testing.assert_allclose(contracted(tt_svd(tensor, 10**6)), tensor, rtol=0, atol=1e-12)


def test_the_cores_of_a_train_have_the_drawn_shapes_and_orthonormal_columns() -> None:
    cores = tt_svd(kernel_of(8, 4, 3, 3), 2)
    assert [core.shape for core in cores] == [(8, 2), (2, 4, 2), (2, 3, 2), (2, 3)]
    for core in cores[:-1]:
        left = core.reshape(-1, core.shape[-1])
        np.testing.assert_allclose(left.T @ left, np.eye(2), atol=1e-14)


def test_the_last_core_carries_the_singular_values() -> None:
    matrix = with_spectrum(6, 5, [4.0, 2.0, 1.0])
    last = tt_svd(matrix, 2)[-1]
    np.testing.assert_allclose(np.linalg.norm(last, axis=1), [4.0, 2.0], rtol=1e-12)


def test_the_svd_suffix_is_the_mixing_times_the_kernel() -> None:
    kernel = kernel_of(8, 4, 3)
    frame = make_frame(kernel, "svd", 3)
    wanted = frame.array[0].astype(np.float64) @ kernel.reshape(8, -1)
    np.testing.assert_allclose(
        frame.suffix(kernel)[0].reshape(3, -1), wanted, rtol=1e-12, atol=1e-14
    )


def test_the_svd_suffix_carries_the_leading_singular_values() -> None:
    kernel = kernel_of(8, 4, 3)
    suffix = make_frame(kernel, "svd", 3).suffix(kernel)[0].reshape(3, -1)
    sigma = np.linalg.svd(kernel.reshape(8, -1), compute_uv=False)
    # M is rounded to float32, so the norms hold to its precision.
    np.testing.assert_allclose(np.linalg.norm(suffix, axis=1), sigma[:3], rtol=1e-6)


@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_a_matrix_has_the_same_suffix_in_both_frames(kind: str) -> None:
    kernel = kernel_of(7, 5)
    _, s, vt = np.linalg.svd(kernel, full_matrices=False)
    suffix = make_frame(kernel, kind, 2).suffix(kernel)[0]
    wanted = s[:2, None] * vt[:2]
    signs = np.sign(np.take_along_axis(wanted, np.abs(wanted).argmax(1)[:, None], axis=1))
    np.testing.assert_allclose(suffix, wanted * signs, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (8, 4, 3), (5, 4, 3, 3)])
def test_the_largest_entry_of_each_right_vector_is_positive(shape: tuple[int, ...]) -> None:
    kernel = kernel_of(*shape, seed=4)
    rows = make_frame(kernel, "svd", 3).suffix(kernel)[0].reshape(3, -1)
    assert (np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], axis=1) > 0).all()


def test_a_negated_kernel_keeps_its_suffix_and_turns_its_mixing() -> None:
    kernel = kernel_of(8, 4, 3)
    one, other = make_frame(kernel, "svd", 3), make_frame(-kernel, "svd", 3)
    np.testing.assert_array_equal(one.array, -other.array)
    np.testing.assert_allclose(one.suffix(kernel), other.suffix(-kernel), rtol=0, atol=1e-15)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_rows_of_an_svd_frame_are_orthonormal_in_every_group(groups: int) -> None:
    array = make_frame(kernel_of(16, 3, 3), "svd", 3, groups=groups).array
    assert array.shape == (groups, 3, 16 // groups)
    assert array.dtype == np.float32
    gram = np.einsum("grk,gsk->grs", array, array)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-6)


@given(rank=st.integers(1, 4), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=30)
def test_svd_frames_are_nested(rank: int, seed: int) -> None:
    kernel = kernel_of(6, 4, 3, seed=seed)
    frame = make_frame(kernel, "svd", 4)
    short = frame.truncated(rank)
    np.testing.assert_array_equal(short.suffix(kernel), frame.suffix(kernel)[:, :rank])
    assert short.digest == make_frame(kernel, "svd", rank).digest


def test_a_frame_cut_at_its_own_rank_is_itself_in_both_kinds() -> None:
    kernel = kernel_of(6, 4, 3)
    for kind in ("svd", "tt"):
        frame = make_frame(kernel, kind, 2)
        assert frame.truncated(2) is frame


def test_a_tt_frame_refuses_to_be_cut() -> None:
    with pytest.raises(FrameError, match="no sub-frame of rank 1") as caught:
        make_frame(kernel_of(6, 4, 3), "tt", 2).truncated(1)
    assert caught.value.code == "frame-not-nested"


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_cutting_an_svd_frame_beyond_its_rank_is_refused(rank: int) -> None:
    with pytest.raises(FrameError, match=f"rank {rank} was asked for") as caught:
        make_frame(kernel_of(6, 4, 3), "svd", 4).truncated(rank)
    assert caught.value.code == "rank-too-large"


@pytest.mark.parametrize(
    ("kind", "shape", "groups", "most"),
    [
        ("svd", (8, 4, 3), 1, 8),
        ("svd", (8, 1, 3), 1, 3),
        ("svd", (8, 4, 3), 2, 4),
        ("svd", (8, 1, 3), 8, 1),
        ("tt", (8, 4, 3), 2, 8),
        ("tt", (8, 1, 3), 8, 3),
        ("tt", (5, 9), 1, 5),
    ],
)
def test_a_rank_beyond_the_kernel_names_the_largest_possible(
    kind: str, shape: tuple[int, ...], groups: int, most: int
) -> None:
    assert largest_rank(shape, kind, groups) == most
    kernel = kernel_of(*shape)
    assert make_frame(kernel, kind, most, groups=groups).rank == most
    with pytest.raises(FrameError, match=f"of rank 1 to {most}") as caught:
        make_frame(kernel, kind, most + 1, groups=groups, layer="conv7")
    assert caught.value.code == "rank-too-large"
    assert caught.value.message.startswith("conv7:")
    assert f"--rank {most} " in caught.value.hint


def test_rank_zero_is_refused() -> None:
    with pytest.raises(FrameError) as caught:
        make_frame(kernel_of(6, 4, 3), "svd", 0)
    assert caught.value.code == "rank-too-large"


@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_a_cut_through_equal_singular_values_is_refused(kind: str) -> None:
    kernel = with_spectrum(6, 5, [3.0, 2.0, 2.0, 1.0])
    assert make_frame(kernel, kind, 1).rank == 1
    assert make_frame(kernel, kind, 3).rank == 3
    with pytest.raises(FrameError, match="equal singular values") as caught:
        make_frame(kernel, kind, 2)
    assert caught.value.code == "degenerate-spectrum"


def test_all_directions_of_an_orthogonal_kernel_can_be_kept() -> None:
    assert make_frame(np.eye(4), "svd", 4).rank == 4
    with pytest.raises(FrameError) as caught:
        make_frame(np.eye(4), "svd", 3)
    assert caught.value.code == "degenerate-spectrum"


@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_a_rank_above_the_kernels_own_is_refused_and_names_it(kind: str) -> None:
    kernel = with_spectrum(6, 5, [3.0, 2.0])
    with pytest.raises(FrameError, match="rank 2, below the rank 3") as caught:
        make_frame(kernel, kind, 3)
    assert caught.value.code == "rank-deficient"
    assert "--rank 2" in caught.value.hint


def test_a_zero_kernel_is_refused() -> None:
    with pytest.raises(FrameError) as caught:
        make_frame(np.zeros((4, 3, 3)), "svd", 1)
    assert (caught.value.code, caught.value.hint) == ("rank-deficient", "The kernel is zero.")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_a_kernel_with_nan_or_infinity_is_refused(kind: str, bad: float) -> None:
    kernel = kernel_of(4, 3, 3)
    kernel[1, 2, 0] = bad
    with pytest.raises(FrameError) as caught:
        make_frame(kernel, kind, 1)
    assert caught.value.code == "kernel-not-finite"


def test_a_grouped_svd_frame_is_the_frames_of_its_groups() -> None:
    kernel = kernel_of(12, 4, 3)
    together = make_frame(kernel, "svd", 2, groups=3)
    for group, rows in enumerate(np.split(kernel, 3)):
        alone = make_frame(rows, "svd", 2)
        np.testing.assert_array_equal(together.array[group], alone.array[0])
        np.testing.assert_array_equal(together.suffix(kernel)[group], alone.suffix(rows)[0])


def test_a_grouped_tt_frame_is_one_for_all_outputs() -> None:
    kernel = kernel_of(12, 4, 3)
    frame = make_frame(kernel, "tt", 2, groups=3)
    assert frame.array.shape == (2, 4, 3)
    suffix = frame.suffix(kernel)
    assert suffix.shape == (3, 2, 4, 3)
    np.testing.assert_array_equal(suffix[0], suffix[2])
    np.testing.assert_array_equal(frame.array, make_frame(kernel, "tt", 2).array)


@given(
    outputs=st.integers(3, 7), inputs=st.integers(3, 7), rank=st.integers(1, 2), seed=st.integers(0)
)
@settings(deadline=None, max_examples=30)
def test_no_other_projection_of_the_rank_loses_less(
    outputs: int, inputs: int, rank: int, seed: int
) -> None:
    kernel = kernel_of(outputs, inputs, seed=seed % 2**32)
    frame = make_frame(kernel, "svd", rank)
    projected = frame.array[0].T.astype(np.float64) @ frame.suffix(kernel)[0]
    tail = np.linalg.svd(kernel, compute_uv=False)[rank:]
    assert np.linalg.norm(kernel - projected) == pytest.approx(np.linalg.norm(tail), rel=1e-6)


def test_a_frame_computed_twice_has_the_same_bits() -> None:
    kernel = kernel_of(32, 16, 5).astype(np.float32)
    for kind in ("svd", "tt"):
        assert make_frame(kernel, kind, 4).digest == make_frame(kernel.copy(), kind, 4).digest


SCRIPT = """
import numpy as np
from fleet.adapt.frames import make_frame
kernel = np.random.default_rng(0).standard_normal((64, 32, 5)).astype(np.float32)
print(make_frame(kernel, "svd", 4).digest, make_frame(kernel, "tt", 4).digest)
"""


def test_a_frame_has_the_same_bits_on_one_thread_and_on_many() -> None:
    seen = set()
    for threads in ("1", "2"):
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        seen.add(done.stdout)
    assert len(seen) == 1
    assert len(seen.pop().split()) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_the_bits_do_not_depend_on_the_layout_of_the_kernel(dtype: str) -> None:
    kernel = kernel_of(8, 4, 3).astype(np.float32)
    plain = make_frame(kernel, "svd", 2).digest
    assert make_frame(np.asfortranarray(kernel.astype(dtype)), "svd", 2).digest == plain


def test_the_digest_names_kind_rank_groups_and_bits() -> None:
    array = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    frame = Frame("svd", 2, 1, array)
    others = [
        Frame("tt", 2, 1, array),
        Frame("svd", 1, 1, array),
        Frame("svd", 2, 2, array),
        Frame("svd", 2, 1, -array),
    ]
    assert len({frame.digest, *(other.digest for other in others)}) == 5
    assert Frame("svd", 2, 1, array.copy()).digest == frame.digest


def test_a_suffix_placed_by_hand_reads_as_written() -> None:
    kernel = np.zeros((3, 2, 2))
    kernel[0, 0, 0], kernel[1, 1, 1], kernel[2, 0, 1] = 2.0, 3.0, 5.0
    frame = make_frame(kernel, "svd", 2)
    np.testing.assert_allclose(np.abs(frame.array[0]), [[0, 0, 1], [0, 1, 0]], atol=1e-7)
    np.testing.assert_allclose(
        frame.suffix(kernel)[0], [[[0, 5], [0, 0]], [[0, 0], [0, 3]]], atol=1e-6
    )


def test_scaling_moves_the_step_sizes_and_not_the_space() -> None:
    kernel = kernel_of(8, 4, 3)
    factors = np.array([[2.0, 0.5]])
    frame = make_frame(kernel, "svd", 2)
    np.testing.assert_array_equal(
        frame.scaled(factors).suffix(kernel)[0], frame.suffix(kernel)[0] * factors[0][:, None, None]
    )
    train = make_frame(kernel, "tt", 2)
    np.testing.assert_array_equal(
        train.scaled(factors[0]).suffix(kernel), train.suffix(kernel) * factors[0][:, None, None]
    )


def test_a_random_frame_depends_on_the_layers_name_and_not_on_the_kernels_values() -> None:
    kernels = [np.random.default_rng(seed).normal(size=(6, 4, 3)) for seed in (0, 1)]
    one, two = (make_frame(kernel, "random", 2, layer="conv1") for kernel in kernels)
    other = make_frame(kernels[0], "random", 2, layer="conv2")
    assert one.digest == two.digest != other.digest
    assert one.suffix(kernels[0]).shape == (1, 2, 4, 3)


def test_random_frames_are_nested() -> None:
    kernel = np.random.default_rng(0).normal(size=(6, 4, 3))
    wide = make_frame(kernel, "random", 3, layer="conv1")
    np.testing.assert_array_equal(wide.truncated(2).suffix(kernel), wide.suffix(kernel)[:, :2])
