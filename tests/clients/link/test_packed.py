from __future__ import annotations

import numpy as np
import pytest

from clients.link.messages import decode_answer, encode_answer
from fleet.errors import InputError
from fleet.federate.wire import Payload


def test_a_packed_update_crosses_the_link_as_bytes() -> None:
    packed = np.arange(37, dtype=np.uint8)  # no multiple of a float's size
    sent = Payload(packed, {"encoding": "int4"})
    found = decode_answer(encode_answer(sent))
    assert isinstance(found, Payload)
    assert found.array.dtype == np.uint8
    assert found.array.tolist() == packed.tolist()
    assert dict(found.config) == {"encoding": "int4"}


@pytest.mark.parametrize(
    ("array", "config"),
    [(np.zeros(4, np.uint8), {}), (np.zeros(4, np.float32), {"encoding": "int8"})],
)
def test_an_array_that_its_encoding_does_not_name_is_not_sent(
    array: np.ndarray, config: dict[str, str]
) -> None:
    with pytest.raises(InputError):
        encode_answer(Payload(array, config))
