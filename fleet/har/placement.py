"""The shift that moves a sensor to another part of the body."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError
from fleet.har.dataset import Channel
from fleet.har.rotation import device_rotation, rotate, triples
from fleet.har.shift_kinds import DEVICE_SIGMA_DEGREES, Windows, check_size
from fleet.seeds import generator

__all__ = ["CUTOFF_HZ", "DYNAMIC_GAIN", "Placement"]

# First-order corner of soft tissue and strap. It lies above the steps of walking and running (up to
# 3 Hz), which have to stay, and below their harmonics and heel strikes (99 % of the power of gait
# lies below 15 Hz: Antonsson & Mann, J. Biomechanics 18(1), 1985), which are what gets damped.
CUTOFF_HZ = 5.0
# Amplitudes of motion between neighbouring body segments differ by about a half; a choice, not a
# measurement.
DYNAMIC_GAIN = 1.5
DEVICE_DYNAMIC_SIGMA = 0.1


@dataclass(frozen=True)
class Placement:
    """Every device of the fleet sits on another part of the body.

    Three effects on three-axis sensors, other channels pass unchanged: the sensor is rotated as by
    :class:`Remount` (axes of its own); its dynamic part, which is what differs from the window's
    mean, goes through a first-order low-pass of 5 Hz, as soft tissue and straps damp impacts; and
    that part is multiplied, as segments of the body move by different amounts. Gravity, which the
    mean holds, keeps its length.

    This is no biomechanical model. Another segment also has another motion, phase and lever arm,
    and loose tissue can resonate; only recordings of displaced sensors show that (e.g. Banos et
    al., "A Benchmark Dataset to Evaluate Sensor Displacement in Activity Recognition", UbiComp
    2012, and "Dealing with the Effects of Sensor Displacement in Wearable Activity Recognition",
    Sensors 14(6), 2014).

    Attributes:
        degrees: The common rotation; each device adds its own of 9 degrees (one sigma).

    Raises:
        InputError: ``bad-shift`` for an angle outside 0 to 180.
        DataError: by ``apply``, ``no-triples`` without a three-axis sensor, ``bad-rate`` when
            ``rate_hz`` is no positive number.
    """

    degrees: float

    def __post_init__(self) -> None:
        check_size("placement", "degrees", self.degrees, 180)

    def __str__(self) -> str:
        return f"sensors placed elsewhere, {self.degrees:g}° off"

    def rotation(self, seed: int, device: str) -> NDArray[np.float64]:
        """Return the rotation of one device's sensor, float64 ``[3, 3]``."""
        return device_rotation(seed, device, "placement", self.degrees, DEVICE_SIGMA_DEGREES)

    def gain(self, seed: int, device: str) -> float:
        """Return the factor of one device's motion.

        Seeded for the whole fleet, 1.5 or its inverse, times the device's own ``exp(N(0, 0.1))``.
        """
        more = generator(seed, 0, "fleet", "placement/gain").random() < 0.5
        own = generator(seed, 0, device, "placement/gain").normal(0.0, DEVICE_DYNAMIC_SIGMA)
        return (DYNAMIC_GAIN if more else 1 / DYNAMIC_GAIN) * math.exp(own)

    def apply(
        self, x: Windows, channels: Sequence[Channel], rate_hz: float, *, seed: int, device: str
    ) -> Windows:
        """Rotate, damp and scale every three-axis sensor; see :class:`Shift`."""
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise DataError("bad-rate", f"rate_hz must be a positive number, not {rate_hz}")
        moved = rotate(x, channels, self.rotation(seed, device))
        gain = self.gain(seed, device)
        for triple in triples(channels):
            signal = moved[:, triple].astype(np.float64)
            mean = signal.mean(axis=2, keepdims=True)
            moved[:, triple] = mean + gain * _low_pass(signal - mean, rate_hz)
        return moved


def _low_pass(x: NDArray[np.float64], rate_hz: float) -> NDArray[np.float64]:
    """Filter ``[n, c, t]`` along time, at rest on its first sample before a window begins.

    Step-invariant, so that it is stable at every rate, also where the corner exceeds the Nyquist
    frequency and little is damped.
    """
    share = -math.expm1(-2 * math.pi * CUTOFF_HZ / rate_hz)
    smooth: NDArray[np.float64] = x.copy()
    for now in range(1, x.shape[2]):
        before = smooth[:, :, now - 1]
        smooth[:, :, now] = before + share * (x[:, :, now] - before)
    return smooth
