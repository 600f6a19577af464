"""Shifts of the world that a fleet must learn: a sensor remounted at another angle."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError, InputError
from fleet.har.dataset import Channel
from fleet.seeds import generator

__all__ = ["Remount", "parse", "rotate", "rotation_matrix"]

FORMS = "Forms: none, or remount:DEGREES with 0 to 180 degrees, e.g. remount:35."


@dataclass(frozen=True)
class Remount:
    """Every device of the fleet wears its sensor rotated, much the same way.

    Attributes:
        degrees: The common rotation, about one random axis for the whole fleet.
        device_sigma_degrees: Standard deviation of each device's own further rotation.
    """

    degrees: float
    device_sigma_degrees: float = 9.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.degrees) and 0 <= self.degrees <= 180):
            raise InputError("bad-shift", f"degrees must be 0 to 180, not {self.degrees}", FORMS)
        sigma = self.device_sigma_degrees
        if not (math.isfinite(sigma) and 0 <= sigma <= 180):
            raise InputError("bad-shift", f"device_sigma_degrees must be 0 to 180, not {sigma}")

    def rotation(self, seed_root: int, device: str) -> NDArray[np.float64]:
        """Return the rotation of one device's sensor.

        Args:
            seed_root: The run's seed.
            device: Device name.

        Returns:
            float64 ``[3, 3]``: the common rotation, then the device's own.
        """
        common = rotation_matrix(_axis(generator(seed_root, 0, "fleet", "remount")), self.degrees)
        random = generator(seed_root, 0, device, "remount")
        axis = _axis(random)
        own = rotation_matrix(axis, random.normal(0.0, self.device_sigma_degrees))
        both: NDArray[np.float64] = own @ common
        return both


def parse(text: str) -> Remount | None:
    """Read a shift.

    >>> parse("remount:35")
    Remount(degrees=35.0, device_sigma_degrees=9.0)
    >>> parse("none") is None
    True

    Raises:
        InputError: ``bad-shift``; the hint lists the forms.
    """
    if text == "none":
        return None
    match = re.fullmatch(r"remount:(\d+(?:\.\d+)?)", text, re.ASCII)
    if match is None:
        raise InputError("bad-shift", f"unknown shift {text!r}", FORMS)
    return Remount(float(match[1]))


def rotation_matrix(axis: NDArray[np.floating[Any]], degrees: float) -> NDArray[np.float64]:
    """Return the right-handed rotation about an axis (Rodrigues' formula).

    Args:
        axis: ``[3]``, of any length but zero.
        degrees: Angle.

    Returns:
        float64 ``[3, 3]``, orthogonal with determinant 1; exactly the identity at 0 degrees.

    Raises:
        InputError: ``bad-axis`` for a zero, non-finite or wrongly shaped axis.
    """
    length = float(np.linalg.norm(axis)) if np.shape(axis) == (3,) else 0.0
    if not (math.isfinite(length) and length > 0):
        raise InputError("bad-axis", f"the axis must be three numbers, not all zero: {axis}")
    x, y, z = (np.asarray(axis, dtype=np.float64) / length).tolist()
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = math.radians(degrees)
    # The half-angle form keeps 1 - cos accurate at small angles.
    versine = 2.0 * math.sin(angle / 2) ** 2
    matrix: NDArray[np.float64] = np.eye(3) + math.sin(angle) * cross + versine * (cross @ cross)
    return matrix


def rotate(
    x: NDArray[np.float32], channels: Sequence[Channel], rotation: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Rotate every three-axis sensor; all sensors of a device turn together.

    Args:
        x: float32 ``[n, c, t]`` in physical units (not normalised: the axes of a sensor must
            share a unit).
        channels: ``[c]``; ``acc_x, acc_y, acc_z`` form a sensor. Others pass unchanged.
        rotation: float64 ``[3, 3]``.

    Returns:
        float32 ``[n, c, t]``, a new array.

    Raises:
        DataError: ``no-triples`` when no three channels form a sensor, ``channel-count`` when x
            has another number of channels.
    """
    if x.ndim != 3 or x.shape[1] != len(channels):
        raise DataError("channel-count", f"x must be [n, {len(channels)}, t], not {list(x.shape)}")
    sensors = _sensors(channels)
    if not sensors:
        raise DataError(
            "no-triples",
            "a rotation needs three channels NAME_x, NAME_y and NAME_z, but these are"
            f" {', '.join(channel.name for channel in channels)}",
            "Rename the axes of each sensor like acc_x, acc_y, acc_z, or use the shift none.",
        )
    turned = x.astype(np.float32)
    matrix = rotation.astype(np.float32)
    for triple in sensors:
        turned[:, triple] = np.einsum("ij,njt->nit", matrix, x[:, triple])
    return turned


def _axis(random: np.random.Generator) -> NDArray[np.float64]:
    axis = random.normal(size=3)
    unit: NDArray[np.float64] = axis / float(np.linalg.norm(axis))
    return unit


def _sensors(channels: Sequence[Channel]) -> list[list[int]]:
    places = {channel.name: place for place, channel in enumerate(channels)}
    stems = [name[:-1] for name in places if name.endswith("_x")]
    return [
        [places[stem + axis] for axis in "xyz"]
        for stem in stems
        if all(stem + axis in places for axis in "xyz")
    ]
