"""The methods by name."""

from __future__ import annotations

from fleet.errors import InputError
from fleet.peft.bias import bias
from fleet.peft.core import core
from fleet.peft.full import full
from fleet.peft.head import head
from fleet.peft.method import Method

__all__ = ["METHODS", "find"]

METHODS: dict[str, Method] = {method.name: method for method in (core, bias, head, full)}


def find(name: str) -> Method:
    """Return the method of a name.

    Raises:
        InputError: ``unknown-method``.
    """
    if name not in METHODS:
        raise InputError(
            "unknown-method", f"there is no method {name!r}; known: {', '.join(sorted(METHODS))}"
        )
    return METHODS[name]
