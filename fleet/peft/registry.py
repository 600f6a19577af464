"""The methods by name."""

from __future__ import annotations

from fleet.errors import InputError
from fleet.peft.bias import bias
from fleet.peft.core import core
from fleet.peft.fed_lora import lora
from fleet.peft.full import full
from fleet.peft.head import head
from fleet.peft.method import Method, combined

__all__ = ["METHODS", "find"]

METHODS: dict[str, Method] = {method.name: method for method in (core, bias, head, full, lora)}


def find(name: str) -> Method:
    """Return the method of a name, or of two joined by ``+``, e.g. ``core+head``.

    Raises:
        InputError: ``unknown-method``.
    """
    first, plus, second = name.partition("+")
    if plus and {first, second} <= METHODS.keys() and first != second:
        return combined(METHODS[first], METHODS[second])
    if name not in METHODS:
        raise InputError(
            "unknown-method",
            f"there is no method {name!r}; known: {', '.join(sorted(METHODS))}",
            "Name one, or join two different ones by +, e.g. core+head.",
        )
    return METHODS[name]
