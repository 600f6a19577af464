"""Messages and answers in plain values, for a transport between processes of one cluster.

A message's config is a proxy and its array a view of Flower's bytes; neither should travel as it
is. What travels is told here and nothing else: bytes with their dtype and shape, dicts of scalars,
and of an error its class's name, code, sentence and hint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet import errors
from fleet.errors import FleetError
from fleet.federate.wire import Payload

__all__ = ["Answer", "Plain", "pack", "unpack"]

Answer = Payload | NDArray[Any] | Exception
Plain = tuple[Any, ...]
"""A word that tells which kind follows, then ``bytes``, ``str``, ``int`` and dicts of scalars."""


def pack(answer: Answer) -> Plain:
    """Return a message or an answer in plain values.

    Of an error that is none of ours only class and text are kept.
    """
    if isinstance(answer, Payload):
        return ("payload", *_pack_array(answer.array), dict(answer.config))
    if isinstance(answer, FleetError):
        return ("error", type(answer).__name__, answer.code, answer.message, answer.hint)
    if isinstance(answer, Exception):
        return ("exception", f"{type(answer).__name__}: {answer}")
    return ("array", *_pack_array(answer))


def unpack(plain: Plain) -> Answer:
    """Return what :func:`pack` was given; arrays are read-only.

    Raises:
        ValueError: For anything that ``pack`` does not return.
    """
    match plain:
        case ("payload", bytes(content), str(dtype), tuple(shape), dict(config)):
            return Payload(_array(content, dtype, shape), config)
        case ("array", bytes(content), str(dtype), tuple(shape)):
            return _array(content, dtype, shape)
        case ("error", str(name), str(code), str(message), str(hint)):
            if name in errors.__all__:
                return _error(name, code, message, hint)
        case ("exception", str(text)):
            return RuntimeError(text)
    raise ValueError(f"this is no packed message or answer: {str(plain)[:80]}")


def _pack_array(array: NDArray[Any]) -> tuple[bytes, str, tuple[int, ...]]:
    return array.tobytes(), array.dtype.str, array.shape


def _array(content: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.frombuffer(content, np.dtype(dtype)).reshape(shape)


def _error(name: str, code: str, message: str, hint: str) -> FleetError:
    kind: type[FleetError] = getattr(errors, name)
    return kind(code, message, hint)
