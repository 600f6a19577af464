"""The shifts one by one: how a fleet's sensors differ from those that the base was trained on.

Each is a small physical model, applied to windows in physical units and seeded by name. The number
in its form is a size; the seed decides direction, sign or draw. ``fleet.har.shifts`` reads the
forms and composes them; ``fleet.har.placement`` holds the one that moves a sensor.

Readings and sampling rates differ from one device model, and one unit of it, to the next (Stisen et
al., "Smart Devices are Different", SenSys 2015). Rotation, scaling and jitter of windows are also
common augmentations (Um et al., "Data Augmentation of Wearable Sensor Data for Parkinson's Disease
Monitoring using Convolutional Neural Networks", ICMI 2017, arXiv:1706.00527); here they are drawn
once per fleet or device, not per window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleet.errors import InputError
from fleet.har.dataset import Channel
from fleet.har.rotation import check_channels, device_rotation, rotate, sensors
from fleet.seeds import generator

__all__ = [
    "DEVICE_SIGMA_DEGREES",
    "FORMS",
    "Gain",
    "Noise",
    "Rate",
    "Remount",
    "Shift",
    "Windows",
    "check_size",
]

FORMS = (
    "Forms: none, remount:DEGREES (0 to 180), gain:PERCENT (0 to 50), rate:PERCENT (0 to 50),"
    " noise:PERCENT (0 to 200), placement:DEGREES (0 to 180), or several of different kinds joined"
    " by + and applied from left to right, e.g. remount:35+gain:20+noise:10."
)

DEVICE_SIGMA_DEGREES = 9.0
# A device strays from its fleet's common gain by a quarter of it (one sigma), much as re-mounted
# sensors do at the default 35 degrees: the fleet has something in common and still differs.
DEVICE_GAIN_SHARE = 0.25

Windows = NDArray[np.float32]


class Shift(Protocol):
    """What happens to a device's windows; ``str`` of it is a phrase for people."""

    def apply(
        self, x: Windows, channels: Sequence[Channel], rate_hz: float, *, seed: int, device: str
    ) -> Windows:
        """Return windows as the shifted device would have recorded them.

        Args:
            x: float32 ``[n, c, t]`` in physical units, not normalised.
            channels: ``[c]``.
            rate_hz: Samples per second.
            seed: The run's seed.
            device: Device name.

        Returns:
            float32 ``[n, c, t]``, a new array; the same for the same arguments.

        Raises:
            DataError: ``channel-count`` when x has another number of channels.
        """


@dataclass(frozen=True)
class Remount:
    """Every device of the fleet wears its sensor rotated, much the same way.

    All three-axis sensors of a device turn together; lengths of vectors do not change.

    Attributes:
        degrees: The common rotation, about one random axis for the whole fleet.
        device_sigma_degrees: Standard deviation of each device's own further rotation.

    Raises:
        InputError: ``bad-shift`` for angles outside 0 to 180.
        DataError: by ``apply``, ``no-triples`` without a three-axis sensor.
    """

    degrees: float
    device_sigma_degrees: float = DEVICE_SIGMA_DEGREES

    def __post_init__(self) -> None:
        check_size("remount", "degrees", self.degrees, 180)
        check_size("remount", "device_sigma_degrees", self.device_sigma_degrees, 180)

    def __str__(self) -> str:
        return f"sensors re-mounted by {self.degrees:g}°"

    def rotation(self, seed_root: int, device: str) -> NDArray[np.float64]:
        """Return the rotation of one device's sensor.

        Args:
            seed_root: The run's seed.
            device: Device name.

        Returns:
            float64 ``[3, 3]``: the common rotation, then the device's own.
        """
        sigma = self.device_sigma_degrees
        return device_rotation(seed_root, device, "remount", self.degrees, sigma)

    def apply(
        self, x: Windows, channels: Sequence[Channel], rate_hz: float, *, seed: int, device: str
    ) -> Windows:
        """Rotate every three-axis sensor; see :class:`Shift`."""
        return rotate(x, channels, self.rotation(seed, device))


@dataclass(frozen=True)
class Gain:
    """Every sensor's sensitivity is off: readings are multiplied, gravity included.

    The axes of a sensor (``acc``, ``gyro``) share a factor; a channel that belongs to no
    three-axis sensor has its own.

    Attributes:
        percent: Size p. Seed and sensor decide for the whole fleet between ``1 + p/100`` and
            ``1 - p/100``; each device multiplies that by its own ``exp(N(0, p/400))``.

    Raises:
        InputError: ``bad-shift`` for a size outside 0 to 50.
    """

    percent: float

    def __post_init__(self) -> None:
        check_size("gain", "percent", self.percent, 50)

    def __str__(self) -> str:
        return f"gains off by {self.percent:g} %"

    def factors(self, seed: int, device: str, channels: Sequence[Channel]) -> NDArray[np.float64]:
        """Return the factor of each channel on one device, float64 ``[c]``, positive."""
        factors = np.ones(len(channels))
        share = self.percent / 100
        for name, places in sensors(channels).items():
            sign = 1 if generator(seed, 0, "fleet", f"gain/{name}").random() < 0.5 else -1
            own = generator(seed, 0, device, f"gain/{name}").normal(0.0, share * DEVICE_GAIN_SHARE)
            factors[places] = (1 + sign * share) * math.exp(own)
        return factors

    def apply(
        self, x: Windows, channels: Sequence[Channel], rate_hz: float, *, seed: int, device: str
    ) -> Windows:
        """Multiply every sensor by its factor; see :class:`Shift`."""
        check_channels(x, channels)
        factors = self.factors(seed, device, channels).astype(np.float32)
        return x.astype(np.float32) * factors[None, :, None]


@dataclass(frozen=True)
class Rate:
    """Every device samples faster or slower than it says.

    Windows are stretched about their centre: a motion of f Hz appears at ``factor * f``. Samples
    between two are interpolated linearly, which damps the highest frequencies a little, and samples
    beyond a window's ends hold its first or last one.

    Attributes:
        percent: Tolerance p: each device's factor is uniform in ``[1 - p/100, 1 + p/100]``.

    Raises:
        InputError: ``bad-shift`` for a tolerance outside 0 to 50.
    """

    percent: float

    def __post_init__(self) -> None:
        check_size("rate", "percent", self.percent, 50)

    def __str__(self) -> str:
        return f"sampling rates off by up to {self.percent:g} %"

    def factor(self, seed: int, device: str) -> float:
        """Return by how much motion seems faster on one device."""
        return float(1 + self.percent / 100 * generator(seed, 0, device, "rate").uniform(-1, 1))

    def apply(
        self, x: Windows, channels: Sequence[Channel], rate_hz: float, *, seed: int, device: str
    ) -> Windows:
        """Resample every window; see :class:`Shift`."""
        check_channels(x, channels)
        last = x.shape[2] - 1
        steps = np.arange(x.shape[2]) - last / 2
        times = np.clip(last / 2 + steps * self.factor(seed, device), 0, last)
        below = np.floor(times).astype(np.int64)
        above = np.minimum(below + 1, last)
        weight = (times - below).astype(np.float32)
        source = x.astype(np.float32)
        left = source[:, :, below]
        moved: Windows = left + weight * (source[:, :, above] - left)
        return moved


@dataclass(frozen=True)
class Noise:
    """Every device's electronics add white Gaussian noise.

    Noise is drawn anew for each window, so the samples that two overlapping windows share differ by
    their noise, and of windows given together the standard deviation is one.

    Attributes:
        percent: Standard deviation of the noise, in per cent of each channel's standard deviation
            over all samples of x (its RMS about its mean).

    Raises:
        InputError: ``bad-shift`` for a level outside 0 to 200.
    """

    percent: float

    def __post_init__(self) -> None:
        check_size("noise", "percent", self.percent, 200)

    def __str__(self) -> str:
        return f"noise of {self.percent:g} %"

    def apply(
        self, x: Windows, channels: Sequence[Channel], rate_hz: float, *, seed: int, device: str
    ) -> Windows:
        """Add noise; see :class:`Shift`. Give all windows of a device in one call."""
        check_channels(x, channels)
        if not x.size:
            return x.astype(np.float32)
        sigma = self.percent / 100 * np.std(x, axis=(0, 2), dtype=np.float64)
        white = generator(seed, 0, device, "noise").standard_normal(x.shape, dtype=np.float32)
        noisy: Windows = x.astype(np.float32) + white * sigma.astype(np.float32)[None, :, None]
        return noisy


def check_size(kind: str, name: str, value: float, largest: float) -> None:
    """Hold a shift's number to its range.

    Raises:
        InputError: ``bad-shift`` unless it is 0 to ``largest``; the hint lists the forms.
    """
    if not (math.isfinite(value) and 0 <= value <= largest):
        rule = f"{name} of {kind} must be 0 to {largest:g}, not {value}"
        raise InputError("bad-shift", rule, FORMS)
