"""A built-in data set: plausible inertial signals of people with their own gait and sensor mount.

It stands in where no real data is at hand; no result on it says anything about real people. A
waist sensor feels gravity, the step's push on three axes and the trunk's turning. Sitting, standing
and lying differ by the direction of gravity alone, walking and stairs mainly by the direction of
the push, so that a model learned with one mount loses clearly on a rotated one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fleet.errors import InputError
from fleet.har.assembly import INERTIAL, RATE_HZ, STRIDE, WINDOW, Piece, assemble
from fleet.har.dataset import Channel, DataSet
from fleet.har.partition import device_name
from fleet.har.rotation import rotation_matrix
from fleet.har.windows import STANDARD_GRAVITY
from fleet.seeds import generator

__all__ = [
    "ACTIVITIES",
    "NINE",
    "PEOPLE",
    "RATE_HZ",
    "WINDOWS_PER_ACTIVITY",
    "Activity",
    "make",
    "make_nine",
]

Array = NDArray[np.float64]

PEOPLE = 12
WINDOWS_PER_ACTIVITY = 28
MAX_PEOPLE = 1000
HARMONICS = 4
# Sensor axes, when worn as intended: x up, y to the left, z forward.
UP, LEFT, FORWARD = np.eye(3)
MOUNT_SIGMA_DEGREES = 6.0
REMOUNT_SIGMA_DEGREES = 2.5
POSTURE_SIGMA_DEGREES = 4.0
# The channels of UCI-HAR, and as many people and windows as a hundred windows a device need.
NINE = (*INERTIAL, *(Channel(f"body_acc_{axis}", "m/s^2") for axis in "xyz"))
NINE_PEOPLE = 24
NINE_WINDOWS_PER_ACTIVITY = 48


@dataclass(frozen=True)
class Activity:
    """How an activity moves the trunk of the average person.

    Attributes:
        name: Label.
        step_hz: Steps per second; 0 for a posture.
        lean_degrees: Backward lean of the trunk; negative leans forward.
        push: Peak of the step's acceleration (up, left, forward) in m/s².
        turn: Peak angular rate (about up, left, forward) in rad/s.
        sharpness: Ratio of each harmonic to the one before; impacts are sharp.
    """

    name: str
    step_hz: float
    lean_degrees: float
    push: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sharpness: float = 0.5


ACTIVITIES = (
    Activity("walking", 1.80, -2, (2.4, 1.0, 2.0), (0.55, 0.35, 0.40), 0.45),
    Activity("running", 2.65, -7, (8.5, 2.6, 3.4), (1.10, 0.90, 0.80), 0.50),
    Activity("stairs_up", 1.72, -9, (2.0, 1.5, 1.1), (0.35, 0.70, 0.45), 0.40),
    Activity("stairs_down", 1.84, 1, (3.2, 1.3, 1.2), (0.60, 0.45, 0.65), 0.65),
    Activity("sitting", 0.0, 27),
    Activity("standing", 0.0, 0),
    Activity("lying", 0.0, 82),
)


def make(
    people: int = PEOPLE,
    seed: int = 0,
    windows_per_activity: int = WINDOWS_PER_ACTIVITY,
    recordings: int = 2,
) -> DataSet:
    """Generate the data set ``synthetic``.

    A person's signals depend on ``seed`` and the person alone, not on how many others there are.

    Args:
        people: Number of people, from 1.
        seed: Seed of everything random.
        windows_per_activity: Windows of each activity per person, over all recordings.
        recordings: Per person; each holds every activity once, in random order.

    Returns:
        7 classes, 6 channels (m/s² and rad/s), 50 Hz, windows of 128 at stride 64.

    Raises:
        InputError: ``bad-synthetic`` for sizes out of range.

    >>> make(people=2, windows_per_activity=4).x.shape
    (56, 6, 128)
    """
    pieces = list(_pieces(people, seed, windows_per_activity, recordings))
    labels = [activity.name for activity in ACTIVITIES]
    return assemble("synthetic", labels, INERTIAL, pieces, _info(seed))


def make_nine(
    people: int = NINE_PEOPLE,
    seed: int = 0,
    windows_per_activity: int = NINE_WINDOWS_PER_ACTIVITY,
    recordings: int = 2,
) -> DataSet:
    """Generate ``synthetic:9x128``: the same people and bodies, in the form of UCI-HAR.

    Beside :func:`make`'s six channels it has the body's acceleration, that is without the mean of
    the stretch, which stands for gravity; running is left out.

    Args:
        people: See :func:`make`; also of the rest.
        seed: Seed of everything random.
        windows_per_activity: Windows of each activity per person, over all recordings.
        recordings: Per person.

    Returns:
        6 classes, 9 channels, 50 Hz, windows of 128 at stride 64.

    Raises:
        InputError: ``bad-synthetic`` for sizes out of range.

    >>> make_nine(people=2, windows_per_activity=4).x.shape
    (48, 9, 128)
    """
    kept = [index for index, one in enumerate(ACTIVITIES) if one.name != "running"]
    pieces = []
    for piece in _pieces(people, seed, windows_per_activity, recordings):
        if piece.label in kept:
            total = piece.samples[:, :3]
            samples = np.concatenate([piece.samples, total - total.mean(axis=0)], axis=1)
            pieces.append(replace(piece, samples=samples, label=kept.index(piece.label)))
    labels = [ACTIVITIES[index].name for index in kept]
    return assemble("synthetic:9x128", labels, NINE, pieces, _info(seed))


def _pieces(people: int, seed: int, windows_per_activity: int, recordings: int) -> Iterator[Piece]:
    """Yield every activity of every recording of every person."""
    _check_sizes(people, windows_per_activity, recordings)
    sizes = [len(part) for part in np.array_split(np.arange(windows_per_activity), recordings)]
    for person in range(1, people + 1):
        random = generator(seed, 0, device_name(person), "synthetic")
        body = _Body.draw(random)
        for number, windows in enumerate(sizes):
            rec = recordings * (person - 1) + number
            samples = _recording(random, body, WINDOW + (windows - 1) * STRIDE)
            for label in random.permutation(len(ACTIVITIES)):
                yield Piece(samples[label], int(label), person, rec)


def _check_sizes(people: int, windows_per_activity: int, recordings: int) -> None:
    if not 1 <= people <= MAX_PEOPLE:
        raise InputError("bad-synthetic", f"people must be 1 to {MAX_PEOPLE}, not {people}")
    if not 1 <= recordings <= windows_per_activity <= 10_000:
        raise InputError(
            "bad-synthetic",
            "need 1 <= recordings <= windows_per_activity <= 10000,"
            f" not {recordings} and {windows_per_activity}",
        )


def _info(seed: int) -> dict[str, object]:
    return {
        "title": "Synthetic inertial signals, generated by Corefleet",
        "placement": "imagined waist sensor: x up, y left, z forward",
        "licence": "Apache-2.0, as Corefleet",
        "seed": seed,
    }


@dataclass(frozen=True, eq=False)
class _Body:
    """What makes a person's signals their own; ``a`` counts activities, ``h`` harmonics."""

    pace: float
    vigour: float
    asymmetry: float
    gains: Array  # [a, 6]
    weights: Array  # [a, 6, h]
    phases: Array  # [a, 6, h]
    posture: Array  # [a, 2] degrees: lean and tilt
    mount: Array  # [3, 3]
    bias: Array  # [6]

    @classmethod
    def draw(cls, random: np.random.Generator) -> _Body:
        shape = (len(ACTIVITIES), 6, HARMONICS)
        sharpness = np.array([activity.sharpness for activity in ACTIVITIES])
        decay = np.power(sharpness[:, None, None], np.arange(HARMONICS, dtype=np.float64))
        usual = np.linspace(0, 2 * np.pi, 6 * HARMONICS, endpoint=False).reshape(6, HARMONICS)
        return cls(
            pace=random.normal(1.0, 0.05),
            vigour=math.exp(random.normal(0.0, 0.12)),
            asymmetry=abs(random.normal(0.0, 0.15)),
            gains=np.exp(random.normal(0.0, 0.10, shape[:2])),
            weights=decay * np.exp(random.normal(0.0, 0.2, shape)),
            phases=usual + random.normal(0.0, 0.35, shape),
            posture=random.normal(0.0, POSTURE_SIGMA_DEGREES, (len(ACTIVITIES), 2)),
            mount=_small_rotation(random, MOUNT_SIGMA_DEGREES),
            bias=random.normal(0.0, 1.0, 6) * ([0.08] * 3 + [0.02] * 3),
        )


def _recording(random: np.random.Generator, body: _Body, length: int) -> Array:
    """Return one recording, every activity apart: ``[a, length, 6]`` in m/s² and rad/s."""
    shape = (len(ACTIVITIES), length)
    step_hz = np.array([activity.step_hz for activity in ACTIVITIES])[:, None] * body.pace
    hurry = 1 + 0.03 * _slow(random, shape)
    stride_phase = np.cumsum(np.pi * step_hz * hurry / RATE_HZ, axis=1)
    stride_phase += random.uniform(0, 2 * np.pi, (len(ACTIVITIES), 1))
    motion = _steps(body, stride_phase) * (1 + 0.12 * _slow(random, shape))[:, :, None]
    upright = np.broadcast_to(STANDARD_GRAVITY * UP, (*shape, 3))
    trunk = np.concatenate([upright + motion[:, :, :3], motion[:, :, 3:]], axis=2)
    mount = _small_rotation(random, REMOUNT_SIGMA_DEGREES) @ body.mount
    for index, activity in enumerate(ACTIVITIES):
        lean, tilt = body.posture[index] + (activity.lean_degrees, 0.0)
        lean, tilt = random.normal((lean, tilt), REMOUNT_SIGMA_DEGREES)
        pose = rotation_matrix(FORWARD, tilt) @ rotation_matrix(LEFT, lean)
        for sensor in (slice(0, 3), slice(3, 6)):
            trunk[index, :, sensor] = trunk[index, :, sensor] @ (mount @ pose).T
    sway = np.stack([_slow(random, shape) for _ in range(6)], axis=2)
    noise = 0.15 * sway + random.normal(0.0, 1.0, trunk.shape)
    return trunk + body.bias + noise * ([0.20] * 3 + [0.03] * 3)


def _steps(body: _Body, stride_phase: Array) -> Array:
    """Return push and turn along the trunk's axes, ``[a, T, 6]``: harmonics of the gait.

    Up, forward and the pitching turn repeat every step; the rest every stride (two steps).
    """
    peaks = np.array([(*activity.push, *activity.turn) for activity in ACTIVITIES])
    peaks *= body.gains * body.vigour
    motion = np.zeros((*stride_phase.shape, 6))
    for axis, per_step in enumerate((True, False, True, False, True, False)):
        for harmonic in range(HARMONICS):
            order = (harmonic + 1) * (2 if per_step else 1)
            phase = order * stride_phase + body.phases[:, axis, harmonic, None]
            motion[:, :, axis] += body.weights[:, axis, harmonic, None] * np.sin(phase)
    limp = 1 + body.asymmetry * np.sin(stride_phase)
    steps: Array = motion * limp[:, :, None] * peaks[:, None, :]
    return steps


def _slow(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Return smooth noise of unit variance, slower than 0.5 Hz, ``[a, T]``."""
    seconds = np.arange(shape[1]) / RATE_HZ
    total = np.zeros(shape)
    for _ in range(3):
        hertz = random.uniform(0.03, 0.5, (shape[0], 1))
        total += np.sin(2 * np.pi * (hertz * seconds + random.uniform(0, 1, (shape[0], 1))))
    smooth: Array = total * math.sqrt(2 / 3)
    return smooth


def _small_rotation(random: np.random.Generator, sigma_degrees: float) -> Array:
    axis = random.normal(size=3)
    return rotation_matrix(axis, random.normal(0.0, sigma_degrees))
