from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fleet.adapt.lean.convolution import Convolve
from fleet.adapt.lean.layers import Trained
from fleet.adapt.lean.winograd import TAPS, TILE, Winograd, matrices


@pytest.mark.parametrize("taps", TAPS)
def test_the_matrices_filter_any_signal_with_fewer_products(taps: int) -> None:
    back, filters, forth = matrices(taps)
    assert len(forth) == TILE + taps - 1 < TILE * taps
    rng = np.random.default_rng(0)
    signal, kernel = rng.normal(size=TILE + taps - 1), rng.normal(size=taps)
    expected = np.correlate(signal, kernel, mode="valid")
    np.testing.assert_allclose(back @ ((filters @ kernel) * (forth @ signal)), expected, rtol=1e-10)


def test_three_taps_have_the_matrix_of_the_paper_up_to_scale() -> None:
    # Bᵀ of F(4, 3) in Lavin & Gray, arXiv 1509.09308.
    paper = [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
    for found, row in zip(matrices(3)[2], np.array(paper), strict=True):
        lead = np.flatnonzero(row)[0]
        np.testing.assert_allclose(found / found[lead], row / row[lead], atol=1e-12)


@settings(max_examples=40)
@given(
    taps=st.sampled_from(TAPS),
    padding=st.integers(0, 2),
    length=st.integers(5, 23),
    windows=st.integers(1, 9),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
)
def test_it_filters_as_a_convolution_does(
    taps: int, padding: int, length: int, windows: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(outputs, inputs, taps, dtype=torch.float64)
    x = torch.randn(windows, inputs, length, dtype=torch.float64)
    constant = torch.randn(windows, outputs, dtype=torch.float64)
    found = Winograd(kernel, padding)(x, constant)
    expected = functional.conv1d(x, kernel, padding=padding) + constant.unsqueeze(2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taps", TAPS)
def test_its_transpose_is_the_gradient_of_the_input(taps: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(6, 5, taps, dtype=torch.float64)
    x = torch.randn(3, 5, 18, dtype=torch.float64, requires_grad=True)
    y = functional.conv1d(x, kernel, padding=2)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, grad)
    found = Winograd.transposed(kernel, 2)(grad)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_blocks_and_what_ran_before_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    filtered, x = Winograd(torch.randn(8, 4, 5), 2), torch.randn(13, 4, 32)
    whole = filtered(x)
    monkeypatch.setattr("fleet.adapt.lean.winograd.BLOCK_BYTES", 1)
    for _ in range(2):
        torch.testing.assert_close(filtered(x), whole, rtol=1e-5, atol=1e-6)


def test_windows_of_another_length_leave_nothing_behind() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(3, 2, 5, dtype=torch.float64)
    filtered = Winograd(kernel, 2)
    for length in (128, 126, 125, 127, 9, 128):
        x = torch.randn(4, 2, length, dtype=torch.float64)
        expected = functional.conv1d(x, kernel, padding=2)
        torch.testing.assert_close(filtered(x), expected, rtol=1e-10, atol=1e-10)


def test_in_single_precision_it_is_within_five_times_the_error_of_the_direct_sum() -> None:
    torch.manual_seed(0)
    kernel, x = torch.randn(128, 128, 5) / 25, torch.randn(16, 128, 32).relu()
    exact = functional.conv1d(x.double(), kernel.double(), padding=2)
    direct = (functional.conv1d(x, kernel, padding=2) - exact).norm()
    assert (Winograd(kernel, 2)(x) - exact).norm() < 5 * direct


def test_no_windows_give_no_windows() -> None:
    assert Winograd(torch.randn(3, 2, 5), 2)(torch.randn(0, 2, 9)).shape == (0, 3, 9)


@pytest.mark.parametrize(
    ("layer", "quick"),
    [
        (nn.Conv1d(32, 32, 5, padding=2), True),
        (nn.Conv1d(32, 32, 8, padding=2), False),
        (nn.Conv1d(32, 32, 5, stride=2), False),
        (nn.Conv1d(32, 32, 5, dilation=2), False),
        (nn.Conv1d(64, 64, 5, groups=2), False),
        (nn.Conv1d(9, 64, 5), False),
        (nn.Conv2d(32, 32, (1, 5)), False),
    ],
)
def test_only_kernels_that_suit_run_with_fewer_products(layer: nn.Module, quick: bool) -> None:
    padding = layer.padding
    assert isinstance(padding, tuple)
    op = Convolve(layer, None, padding, Trained(), quick=True)
    assert (op._fewer is not None) is quick
    assert Convolve(layer, None, padding, Trained())._fewer is None
