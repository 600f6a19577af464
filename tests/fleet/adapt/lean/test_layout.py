from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fleet.adapt.lean.layout import channels_last, matrix

SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


@given(shape=SHAPES, last=st.booleans(), groups=st.integers(1, 3))
def test_whatever_the_order_in_memory_the_values_stay_and_rows_are_positions(
    shape: tuple[int, ...], last: bool, groups: int
) -> None:
    shape = (shape[0], shape[1] * groups, *shape[2:])
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    laid = channels_last(x)
    assert torch.equal(laid, x)
    assert laid.movedim(1, -1).is_contiguous()
    rows = laid.movedim(1, -1).reshape(-1, groups, shape[1] // groups).transpose(0, 1)
    assert torch.equal(matrix(laid, groups), rows)
    assert matrix(laid, groups).data_ptr() == laid.data_ptr()


def test_a_part_of_a_larger_tensor_is_laid_out_anew() -> None:
    whole = torch.randn(3, 8, 4).movedim(-1, 1)
    for part in (whole[:, :2], whole[:, :, ::2], whole[..., 1:]):
        assert torch.equal(channels_last(part), part)
        assert channels_last(part).movedim(1, -1).is_contiguous()


def test_a_later_part_of_a_batch_is_viewed_where_it_lies() -> None:
    whole = torch.randn(6, 5, 4).movedim(-1, 1)
    part = whole[2:4]
    assert channels_last(part) is part
    assert torch.equal(matrix(part, 1)[0], part.movedim(1, -1).reshape(-1, 4))


def test_an_empty_batch_has_no_rows() -> None:
    assert matrix(channels_last(torch.zeros(0, 4, 7)), 2).shape == (2, 0, 2)
