from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fleet.adapt.digest import canonical_json, digest_arrays, digest_json, little_endian

ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype("<f4"), np.dtype("<f8"), np.dtype("<i8")]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
    elements={"allow_nan": False},
)


def test_the_digest_of_a_tiny_array_is_the_golden_one() -> None:
    assert digest_arrays({"a": np.arange(3, dtype=np.float32)}) == (
        "fb98020b3438711841cdcadf59f4c22ecd43219afe03e7e2fd18d5fa89c464f6"
    )


def test_the_bytes_that_are_digested_are_the_documented_ones() -> None:
    parts = [b"null", b"a\n<f4\n2,1", np.array([1.0, 2.0], "<f4").tobytes()]
    stream = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    array = np.array([[1.0], [2.0]], np.float32)
    assert digest_arrays({"a": array}) == hashlib.sha256(stream).hexdigest()


def test_the_digest_of_nothing_is_the_golden_one() -> None:
    assert digest_arrays({}) == ("8e53a1afaf1a7a48d29c1aaf819a64b5c2bea75ba0609d81900a0a61ad8a59ed")


def test_the_digest_of_json_is_the_golden_one() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null]}'
    assert digest_json({"b": 1, "a": 2}) == (
        "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"
    )


@given(one=ARRAYS, two=ARRAYS)
def test_the_insertion_order_is_no_part_of_the_digest(one: np.ndarray, two: np.ndarray) -> None:
    assert digest_arrays({"a": one, "b": two}) == digest_arrays({"b": two, "a": one})


@given(array=ARRAYS)
def test_byte_order_and_memory_layout_are_no_part_of_the_digest(array: np.ndarray) -> None:
    plain = digest_arrays({"a": array})
    swapped = array.astype(array.dtype.newbyteorder(">"))
    strided = np.stack([array, array], axis=-1)[..., 0]
    assert digest_arrays({"a": swapped}) == plain
    assert digest_arrays({"a": np.array(array, order="F")}) == plain
    assert digest_arrays({"a": strided}) == plain


def test_every_difference_gives_another_digest() -> None:
    array = np.array([0.0, 1.0], np.float32)
    variants = [
        digest_arrays({"a": array}),
        digest_arrays({"b": array}),
        digest_arrays({"a": array.reshape(1, 2)}),
        digest_arrays({"a": array.astype(np.float64)}),
        digest_arrays({"a": array.view(np.int32)}),
        digest_arrays({"a": np.array([-0.0, 1.0], np.float32)}),
        digest_arrays({"a": np.nextafter(array, np.float32(2))}),
        digest_arrays({"a": array, "b": array[:0]}),
        digest_arrays({"a": array}, header=[]),
        digest_arrays({"a": array}, header="x"),
    ]
    assert len(set(variants)) == len(variants)


def test_a_scalar_is_not_a_vector_of_one() -> None:
    scalar = np.array(2.5)
    assert digest_arrays({"a": scalar}) != digest_arrays({"a": scalar.reshape(1)})
    assert little_endian(scalar).shape == ()


def test_entries_cannot_trade_bytes_with_their_neighbours() -> None:
    bits = np.arange(4, dtype=np.uint8)
    assert digest_arrays({"a": bits[:1], "b": bits[1:]}) != digest_arrays(
        {"a": bits[:2], "b": bits[2:]}
    )


def test_little_endian_gives_contiguous_little_endian_values() -> None:
    given_array = np.arange(6, dtype=">i4").reshape(2, 3).T
    made = little_endian(given_array)
    assert made.flags.c_contiguous
    assert made.dtype.str == "<i4"
    np.testing.assert_array_equal(made, given_array)


def test_objects_have_no_digest() -> None:
    with pytest.raises(TypeError, match="objects"):
        digest_arrays({"a": np.array([{}], dtype=object)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_json_without_a_canonical_form_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_json([bad])
