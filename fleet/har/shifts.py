"""Shifts of the world that a fleet must learn: read from text, and composed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fleet.errors import InputError
from fleet.har.dataset import Channel
from fleet.har.placement import Placement
from fleet.har.rotation import check_channels, rotate, rotation_matrix
from fleet.har.shift_kinds import FORMS, Gain, Noise, Rate, Remount, Shift, Windows

__all__ = [
    "FORMS",
    "KINDS",
    "Composed",
    "Gain",
    "Noise",
    "Placement",
    "Rate",
    "Remount",
    "Shift",
    "parse",
    "rotate",
    "rotation_matrix",
]

KINDS: dict[str, Callable[[float], Shift]] = {
    "remount": Remount,
    "gain": Gain,
    "rate": Rate,
    "noise": Noise,
    "placement": Placement,
}
"""Shifts by the name in their form; each takes the form's number."""


@dataclass(frozen=True)
class Composed:
    """Several shifts, one after the other.

    Attributes:
        shifts: Applied from left to right, all with the run's seed and the device's name.

    Raises:
        InputError: ``bad-shift`` when a kind comes twice: it would draw the same numbers again.
    """

    shifts: tuple[Shift, ...]

    def __post_init__(self) -> None:
        kinds = [type(shift).__name__.lower() for shift in self.shifts]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            rule = f"a kind of shift may come once, but {', '.join(twice)} comes more often"
            raise InputError("bad-shift", rule, FORMS)

    def __str__(self) -> str:
        return ", ".join(str(shift) for shift in self.shifts)

    def apply(
        self, x: Windows, channels: Sequence[Channel], rate_hz: float, *, seed: int, device: str
    ) -> Windows:
        """Apply the shifts from left to right; see :class:`Shift`."""
        check_channels(x, channels)
        moved = x.astype(np.float32)
        for shift in self.shifts:
            moved = shift.apply(moved, channels, rate_hz, seed=seed, device=device)
        return moved


def parse(text: str) -> Shift | None:
    """Read a shift.

    >>> parse("remount:35")
    Remount(degrees=35.0, device_sigma_degrees=9.0)
    >>> parse("gain:20+noise:10")
    Composed(shifts=(Gain(percent=20.0), Noise(percent=10.0)))
    >>> parse("none") is None
    True

    Raises:
        InputError: ``bad-shift``; the hint lists the forms.
    """
    if text == "none":
        return None
    shifts = tuple(_one(part, text) for part in text.split("+"))
    return shifts[0] if len(shifts) == 1 else Composed(shifts)


def _one(part: str, text: str) -> Shift:
    match = re.fullmatch(r"([a-z]+):(\d+(?:\.\d+)?)", part, re.ASCII)
    if match is None or match[1] not in KINDS:
        where = "" if part == text else f" in {text!r}"
        raise InputError("bad-shift", f"unknown shift {part!r}{where}", FORMS)
    return KINDS[match[1]](float(match[2]))
