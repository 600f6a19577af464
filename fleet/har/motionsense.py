"""MotionSense: an iPhone in the front trouser pocket, 24 people, six activities.

The official layout is ``A_DeviceMotion_data/{dws,ups,wlk,jog,sit,std}_{trial}/sub_N.csv``; Kaggle
nests the folder twice and adds ``__MACOSX``. The accelerometer's reading is gravity +
userAcceleration. Both ends of a trial hold handling of the pocket; they are kept, as published.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fleet.har.assembly import INERTIAL, Piece, assemble
from fleet.har.dataset import DataSet
from fleet.har.downloads import find_folder, finish, numbers, opened
from fleet.har.windows import STANDARD_GRAVITY

__all__ = ["LABELS", "load"]

LABELS = ("downstairs", "upstairs", "walking", "jogging", "sitting", "standing")
CODES = ("dws", "ups", "wlk", "jog", "sit", "std")
# In this order the published recordings are numbered: trial by trial, person by person.
TRIALS = (
    *("dws_1", "dws_11", "dws_2", "jog_16", "jog_9", "sit_13", "sit_5", "std_14", "std_6"),
    *("ups_12", "ups_3", "ups_4", "wlk_15", "wlk_7", "wlk_8"),
)
PEOPLE = 24
HEADER = (
    ",attitude.roll,attitude.pitch,attitude.yaw,gravity.x,gravity.y,gravity.z,rotationRate.x,"
    "rotationRate.y,rotationRate.z,userAcceleration.x,userAcceleration.y,userAcceleration.z"
)
OTHER_SENSORS = ("B_Accelerometer_data", "C_Gyroscope_data")
LAYOUT = (
    "Expected A_DeviceMotion_data/ with the 15 trials dws_1 ... wlk_8, each with the same"
    " sub_1.csv ... sub_24.csv (any subset of people)."
)
INFO = {
    "title": "MotionSense (A_DeviceMotion)",
    "raw_units": "gravity and userAcceleration in g, rotationRate in rad/s;"
    " acc = (gravity + userAcceleration) * 9.80665 here",
    "placement": "front trouser pocket, iPhone 6s",
    "label_rule": "one label per file (trial)",
    "licence": "MIT (the authors' repository); Kaggle's copy says ODbL 1.0",
    "citation": "Malekzadeh, Clegg, Cavallaro, Haddadi: Mobile Sensor Data Anonymization. IoTDI"
    " 2019. doi:10.1145/3302505.3310068",
}


def load(root: Path) -> DataSet:
    """Convert the official download, or any subset of its people.

    The official ``sit_5/sub_1.csv`` and ``sit_13/sub_1.csv`` are one file; both are kept, as in
    the published windows, ``info["known_duplicates"]`` names them, and
    :func:`fleet.har.partition.chronological` keeps such copies off both sides of a split.

    Args:
        root: The unpacked folder, at any level above the trials, or the archive.

    Returns:
        6 classes, 6 channels, 50 Hz, windows of 128 at stride 64; ``rec`` is
        ``24 * trial + person - 1``, whichever people are present.

    Raises:
        DataError: ``layout-unknown``, ``download-broken`` with every missing or garbled file, or
            what the archive breaks.
    """
    with opened(root, _wanted) as folder:
        base = find_folder(folder, _has_trials, root, LAYOUT)
        problems: list[str] = []
        people = _people(base, problems)
        pieces = []
        for number, trial in enumerate(TRIALS):
            label = CODES.index(trial.split("_")[0])
            for person in people:
                samples = _recording(base / trial / f"sub_{person}.csv", problems)
                pieces.append(Piece(samples, label, person, PEOPLE * number + person - 1))
        finish(problems, root, LAYOUT)
    return assemble("motionsense", LABELS, INERTIAL, pieces, {**INFO, **_duplicates(pieces)})


def _wanted(path: PurePosixPath) -> bool:
    return path.suffix == ".csv" and not any(name in path.parts for name in OTHER_SENSORS)


def _has_trials(folder: Path) -> bool:
    return folder.name not in OTHER_SENSORS and any(
        any((folder / trial).glob("sub_*.csv")) for trial in TRIALS
    )


def _people(base: Path, problems: list[str]) -> list[int]:
    people = set()
    for path in sorted(base.glob("*/sub_*.csv")):
        number = re.fullmatch(r"sub_(\d{1,3})\.csv", path.name)
        if path.parent.name not in TRIALS or number is None or not 1 <= int(number[1]) <= PEOPLE:
            problems.append(f"{path.parent.name}/{path.name} is no official file")
        else:
            people.add(int(number[1]))
    return sorted(people)


def _recording(path: Path, problems: list[str]) -> NDArray[np.float64]:
    """Read one trial as ``[T, 6]`` in m/s² and rad/s, or ``[0, 6]`` with its problem."""
    try:
        rows = numbers(path, columns=13, delimiter=",", header=HEADER)
    except ValueError as error:
        problems.append(f"{path.parent.name}/{path.name} {error}")
        return np.empty((0, 6))
    gravity, rotation, motion = rows[:, 4:7], rows[:, 7:10], rows[:, 10:13]
    return np.concatenate([(gravity + motion) * STANDARD_GRAVITY, rotation], axis=1)


def _duplicates(pieces: list[Piece]) -> dict[str, object]:
    """Name the recordings that hold the same samples as another."""
    seen: dict[bytes, int] = {}
    same = []
    for piece in pieces:
        first = seen.setdefault(piece.samples.tobytes(), piece.rec)
        if first != piece.rec:
            same.append([first, piece.rec])
    return {"known_duplicates": same} if same else {}
