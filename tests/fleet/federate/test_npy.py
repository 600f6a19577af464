from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.federate.npy import from_npy, to_npy


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@given(st.lists(st.floats(width=32), max_size=40))
def test_a_packed_array_is_written_as_numpy_writes_it_and_read_back_bit_for_bit(
    values: list[float],
) -> None:
    array = np.array(values, np.float32)
    data = to_npy(array)
    assert data == saved(array)
    back = from_npy(data)
    assert back is not None
    assert back.dtype == np.float32
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.float32),
        np.zeros(4, np.float64),
        np.zeros(4, ">f4"),
        np.zeros(4, np.int32),
        np.float32(1),
    ],
)
def test_any_other_array_is_left_to_numpy(array: np.ndarray) -> None:
    data = to_npy(np.asarray(array))
    assert data == saved(array)
    assert from_npy(data) is None


def test_what_is_read_cannot_be_changed() -> None:
    back = from_npy(to_npy(np.zeros(4, np.float32)))
    assert back is not None
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


def test_a_strided_array_is_written_in_its_own_order() -> None:
    array = np.arange(10, dtype=np.float32)[::2]
    assert to_npy(array) == saved(np.ascontiguousarray(array))


@pytest.mark.parametrize("cut", [0, 6, 64, 127, 128, 131])
def test_a_cut_or_foreign_file_is_left_to_numpy(cut: int) -> None:
    data = to_npy(np.ones(4, np.float32))
    assert from_npy(data[:cut]) is None
    assert from_npy(bytes(len(data))) is None
    assert from_npy(data[:20] + b"?" + data[21:]) is None
