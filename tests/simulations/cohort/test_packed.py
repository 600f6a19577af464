from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from fleet import errors
from fleet.errors import FleetError
from fleet.federate.wire import Payload
from simulations.cohort.packed import pack, unpack


def is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(
            is_plain(each) for pair in value.items() for each in pair
        )
    return type(value) in (bytes, str, int, float, bool)


def test_a_message_travels_as_plain_values_and_is_the_same_again() -> None:
    config = MappingProxyType({"format": 1, "plan": "{}", "loss": 0.5, "last": True, "key": b"\0"})
    array = np.arange(6, dtype="<f4")
    plain = pack(Payload(array, config))
    assert is_plain(plain)
    found = unpack(plain)
    assert isinstance(found, Payload)
    assert found.array.dtype == array.dtype
    assert found.array.tobytes() == array.tobytes()
    assert not found.array.flags.writeable
    assert dict(found.config) == dict(config)
    assert [type(v) for v in found.config.values()] == [type(v) for v in config.values()]


def test_counts_keep_shape_and_type() -> None:
    counts = np.arange(9, dtype=np.int64).reshape(3, 3)
    found = unpack(pack(counts))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, counts, strict=True)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_ours_keeps_code_rule_and_next_step(name: str) -> None:
    error: FleetError = getattr(errors, name)("some-code", "the rule, not 3", "fleet do this")
    plain = pack(error)
    assert is_plain(plain)
    found = unpack(plain)
    assert type(found) is type(error)
    assert (found.code, found.message, found.hint) == (error.code, error.message, error.hint)


def test_of_other_exceptions_the_text_is_left() -> None:
    found = unpack(pack(KeyError("weight")))
    assert isinstance(found, RuntimeError)
    assert str(found) == "KeyError: 'weight'"


@pytest.mark.parametrize("plain", [(), ("error", "SystemExit", "a", "b", "c"), ("payload", b"")])
def test_anything_else_is_refused(plain: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="no packed message"):
        unpack(plain)
