"""What a device's sensor is like in a period: the shifts that are there, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.continual.events import ShiftEvent
from fleet.har.dataset import Channel
from fleet.har.shifts import KINDS, Remount, Shift
from fleet.seeds import generator

__all__ = ["Part", "apply", "parts_of", "text_of"]

# Sizes have so many digits after the point, so that their text says all of them.
DIGITS = 3

Windows = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """What there is of one kind of shift.

    Attributes:
        kind: As in ``fleet.har.shifts``.
        size: The sum of what the events give, positive.
        grown: 0 to 1; below 1 while everything of this kind still grows.
    """

    kind: str
    size: float
    grown: float


def parts_of(events: Sequence[ShiftEvent], period: int) -> tuple[Part, ...]:
    """Add up the shifts of the events that touch a device, each kind once.

    >>> one = ShiftEvent(kind="shift", shift="remount:30", at=0)
    >>> two = ShiftEvent(kind="shift", shift="gain:10+remount:20", at=2, until=6)
    >>> text_of(parts_of([one, two], 3))
    'remount:35+gain:2.5'
    """
    found: dict[str, Part] = {}
    for event in events:
        grown = event.grown(period)
        for kind, size in event.pieces if grown else ():
            before = found.get(kind, Part(kind, 0.0, 0.0))
            total = round(before.size + size * grown, DIGITS)
            found[kind] = Part(kind, total, max(before.grown, grown))
    return tuple(part for part in found.values() if part.size > 0)


def text_of(parts: Sequence[Part]) -> str:
    """Return the parts in the forms of ``fleet.har.shifts``; ``none`` where there are none."""
    sizes = (f"{part.size:.{DIGITS}f}".rstrip("0").rstrip(".") for part in parts)
    return "+".join(f"{p.kind}:{size}" for p, size in zip(parts, sizes, strict=True)) or "none"


def apply(
    x: Windows,
    parts: Sequence[Part],
    channels: Sequence[Channel],
    rate_hz: float,
    *,
    level: NDArray[np.float32],
    seed: int,
    device: str,
    period: int,
    draw: str,
) -> Windows:
    """Return windows as the device's sensor gives them in a period.

    Directions, signs and the like follow from seed, device and kind, so they stay as sizes change.
    Noise alone is new in every period and draw: the same noise twice could be learned by heart.

    Args:
        x: float32 ``[n, c, t]`` in physical units.
        parts: See :func:`parts_of`; applied from left to right.
        channels: ``[c]``.
        rate_hz: Samples per second.
        level: float32 ``[c]``, what the noise's size is a percentage of.
        seed: The run's seed.
        device: Device name.
        period: Which period.
        draw: Which of the period's windows these are, e.g. ``past``.

    Returns:
        float32 ``[n, c, t]``.

    Raises:
        DataError: ``no-triples`` where a rotation has no three-axis sensor.
    """
    for part in parts:
        if part.kind == "noise":
            white = generator(seed, period, device, f"timeline/{draw}/noise").standard_normal(
                x.shape, dtype=np.float32
            )
            x = x + white * (part.size / 100 * level).astype(np.float32)[None, :, None]
        else:
            x = _shift(part).apply(x, channels, rate_hz, seed=seed, device=device)
    return x


def _shift(part: Part) -> Shift:
    if part.kind == "remount":
        # What a device adds of its own grows with the rest: a ramp begins at nothing.
        sigma = Remount.device_sigma_degrees * part.grown
        return Remount(part.size, device_sigma_degrees=sigma)
    return KINDS[part.kind](part.size)
