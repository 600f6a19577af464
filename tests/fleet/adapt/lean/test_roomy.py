"""What keeps numbers for speed computes what the forms that keep bits compute."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.adapt.lean.op import Backward, Forward, Op
from fleet.adapt.lean.ops import Clamp
from fleet.adapt.lean.pooling import MaxPool


def through(op: Op, x: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y, kept = op.forward([x.clone()], Forward((True,), True, (True,)))
    y = y.clone()

    def collect(name: str, value: torch.Tensor) -> None:
        raise AssertionError(f"{name} is not trained")

    grad = slope[: y.shape[0], : y.shape[1], : y.shape[2]]
    (dx,) = op.backward(grad.clone(), kept, Backward(True, (True,), collect))
    assert dx is not None
    return y, dx


def laid_out(shape: tuple[int, ...], levels: int) -> torch.Tensor:
    """Few distinct values, so that many are equal and many zero; channels last in memory."""
    rows = torch.randint(-levels, levels + 1, (shape[0], shape[2], shape[1]))
    return rows.to(torch.float32).movedim(-1, 1)


@settings(max_examples=60)
@given(
    windows=st.integers(1, 3),
    channels=st.integers(1, 4),
    length=st.integers(2, 9),
    levels=st.integers(0, 3),
    relu=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pairs_are_pooled_alike(
    windows: int, channels: int, length: int, levels: int, relu: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = laid_out((windows, channels, length), levels)
    slope = laid_out((windows, channels, length), 5)
    found, expected = (
        through(MaxPool((2,), (2,), (0,), (1,), relu=relu, roomy=roomy), x, slope)
        for roomy in (True, False)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("op", [Clamp(0, None), Clamp(0, 6), Clamp(0, None, closed=True)])
def test_rectifiers_rectify_alike(op: Clamp) -> None:
    torch.manual_seed(0)
    x, slope = laid_out((3, 4, 7), 8), laid_out((3, 4, 7), 5)
    roomy = Clamp(op.low, op.high, op.closed, roomy=True)
    for one, other in zip(through(roomy, x, slope), through(op, x, slope), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_is_kept_by_reference_is_not_to_be_overwritten() -> None:
    assert Clamp(0, None, roomy=True).pins
    assert MaxPool((2,), (2,), (0,), (1,), relu=True, roomy=True).pins
    assert not Clamp(0, None).pins
    assert not MaxPool((3,), (3,), (0,), (1,), relu=True, roomy=True).pins
