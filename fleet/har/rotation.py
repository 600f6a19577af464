"""Three-axis sensors among the channels, and how to rotate them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError, InputError
from fleet.har.dataset import Channel
from fleet.seeds import generator

__all__ = ["check_channels", "device_rotation", "rotate", "rotation_matrix", "sensors", "triples"]


def device_rotation(
    seed: int, device: str, purpose: str, degrees: float, sigma_degrees: float
) -> NDArray[np.float64]:
    """Draw how one device's sensor sits: the fleet's common rotation, then the device's own.

    Args:
        seed: The run's seed.
        device: Device name.
        purpose: Of the seeds; two purposes give independent axes.
        degrees: Angle of the common rotation, about one random axis for the whole fleet.
        sigma_degrees: Standard deviation of the device's own angle, about an axis of its own.

    Returns:
        float64 ``[3, 3]``.
    """
    common = rotation_matrix(_axis(generator(seed, 0, "fleet", purpose)), degrees)
    random = generator(seed, 0, device, purpose)
    axis = _axis(random)
    own = rotation_matrix(axis, random.normal(0.0, sigma_degrees))
    both: NDArray[np.float64] = own @ common
    return both


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
    check_channels(x, channels)
    found = triples(channels)
    turned = x.astype(np.float32)
    matrix = rotation.astype(np.float32)
    for triple in found:
        turned[:, triple] = np.einsum("ij,njt->nit", matrix, x[:, triple])
    return turned


def check_channels(x: NDArray[Any], channels: Sequence[Channel]) -> None:
    """Hold windows to their channels.

    Raises:
        DataError: ``channel-count`` unless x is ``[n, c, t]`` with c channels.
    """
    if x.ndim != 3 or x.shape[1] != len(channels):
        raise DataError("channel-count", f"x must be [n, {len(channels)}, t], not {list(x.shape)}")


def triples(channels: Sequence[Channel]) -> list[list[int]]:
    """Return the places of each three-axis sensor's x, y and z, in the order of the x axes.

    Raises:
        DataError: ``no-triples`` when there is none.
    """
    found = [places for places in sensors(channels).values() if len(places) == 3]
    if not found:
        raise DataError(
            "no-triples",
            "a rotation needs three channels NAME_x, NAME_y and NAME_z, but these are"
            f" {', '.join(channel.name for channel in channels)}",
            "Rename the axes of each sensor like acc_x, acc_y, acc_z, or use a shift without"
            " rotation: gain, rate, noise or none.",
        )
    return found


def sensors(channels: Sequence[Channel]) -> dict[str, list[int]]:
    """Group channels by sensor: three axes where all are there, else each channel for itself.

    Returns:
        Places of each sensor's channels by name: ``acc`` for ``acc_x, acc_y, acc_z``, the
        channel's own name for a lone one.
    """
    places = {channel.name: place for place, channel in enumerate(channels)}
    stems = [name[:-1] for name in places if name.endswith("_x")]
    whole = {
        stem: [places[stem + axis] for axis in "xyz"]
        for stem in stems
        if all(stem + axis in places for axis in "xyz")
    }
    taken = {place for triple in whole.values() for place in triple}
    lone = {name: [place] for name, place in places.items() if place not in taken}
    return {stem.removesuffix("_"): triple for stem, triple in whole.items()} | lone


def _axis(random: np.random.Generator) -> NDArray[np.float64]:
    axis = random.normal(size=3)
    unit: NDArray[np.float64] = axis / float(np.linalg.norm(axis))
    return unit
