"""Sizes as people write them."""

from __future__ import annotations

import re

from fleet.errors import InputError

__all__ = ["bytes_of"]

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def bytes_of(text: str) -> int:
    """Return the bytes of a size such as ``64MiB`` or ``2kB``.

    Raises:
        InputError: ``size`` when it is none.

    >>> bytes_of("64MiB")
    67108864
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found.group(2) not in UNITS:
        raise InputError(
            "size",
            f"a size is a number and one of {', '.join(u for u in UNITS if u)}; not {text!r}",
            "For example 64MiB or 2kB.",
        )
    return int(float(found.group(1)) * UNITS[found.group(2)])
