"""HAPT (UCI 341): a waist smartphone, six basic activities and six short transitions.

The official layout is ``HAPT Data Set/RawData/{acc,gyro}_expEE_userUU.txt`` with ``labels.txt``;
the archive comes with and without its top folder. Windows lie inside one labelled segment, which
gives the official 7,767 + 3,162 windows row by row.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fleet.har.assembly import INERTIAL, Piece, assemble
from fleet.har.dataset import DataSet
from fleet.har.downloads import find_folder, finish, numbers, opened
from fleet.har.windows import STANDARD_GRAVITY

__all__ = ["BASIC_LABELS", "LABELS", "load"]

LABELS = (
    "WALKING",
    "WALKING_UPSTAIRS",
    "WALKING_DOWNSTAIRS",
    "SITTING",
    "STANDING",
    "LAYING",
    "STAND_TO_SIT",
    "SIT_TO_STAND",
    "SIT_TO_LIE",
    "LIE_TO_SIT",
    "STAND_TO_LIE",
    "LIE_TO_STAND",
)
BASIC_LABELS = LABELS[:6]
LAYOUT = (
    "Expected RawData/labels.txt with RawData/acc_expEE_userUU.txt and gyro_expEE_userUU.txt, as in"
    " the official archive 'Smartphone-Based Recognition of Human Activities and Postural"
    " Transitions'; UCI HAR (windows only) is another data set."
)
INFO = {
    "title": "HAPT: Smartphone-Based Recognition of Human Activities and Postural Transitions",
    "raw_units": "acc g, gyro rad/s (acc * 9.80665 here)",
    "placement": "waist smartphone (Samsung Galaxy S II)",
    "label_rule": "window lies inside one labelled segment of RawData/labels.txt; no filtering",
    "licence": "CC BY 4.0 according to UCI; the archive's README prohibits any commercial use",
    "citation": "Reyes-Ortiz, Oneto, Samà, Parra, Anguita: Transition-Aware Human Activity"
    " Recognition Using Smartphones. Neurocomputing 171 (2016). doi:10.24432/C54G7M",
}


def load(root: Path) -> DataSet:
    """Convert the official download.

    Args:
        root: The unpacked folder, at any level above ``RawData``, or the archive.

    Returns:
        12 classes, 6 channels, 50 Hz, windows of 128 at stride 64; ``rec`` is the experiment.

    Raises:
        DataError: ``layout-unknown``, ``download-broken`` with every missing or garbled file, or
            what the archive breaks.
    """
    with opened(root, _wanted) as folder:
        raw = find_folder(folder, _is_raw, root, LAYOUT)
        problems: list[str] = []
        segments = _segments(raw, problems)
        recordings = {
            (experiment, user): _recording(raw, experiment, user, problems)
            for experiment, user in dict.fromkeys((row[0], row[1]) for row in segments)
        }
        pieces = []
        for experiment, user, activity, first, last in segments:
            samples = recordings[experiment, user]
            if last > len(samples) > 0:
                problems.append(
                    f"labels.txt: experiment {experiment} is labelled up to sample {last} but has"
                    f" {len(samples)}"
                )
            pieces.append(Piece(samples[first - 1 : last], activity - 1, user, experiment))
        finish(problems, root, LAYOUT)
    return assemble("hapt", LABELS, INERTIAL, pieces, INFO)


def _wanted(path: PurePosixPath) -> bool:
    return path.suffix == ".txt" and path.parent.name not in ("Train", "Test")


def _is_raw(folder: Path) -> bool:
    return (folder / "labels.txt").is_file() and any(folder.glob("acc_exp*_user*.txt"))


def _segments(raw: Path, problems: list[str]) -> list[tuple[int, int, int, int, int]]:
    """Read ``labels.txt``: experiment, user, activity, first and last sample (from 1)."""
    try:
        rows = numbers(raw / "labels.txt", columns=5)
    except ValueError as error:
        problems.append(f"labels.txt {error}")
        return []
    segments = []
    for line, row in enumerate(rows.tolist(), start=1):
        experiment, user, activity, first, last = (int(value) for value in row)
        if [experiment, user, activity, first, last] != row:
            problems.append(f"labels.txt: row {line} must hold whole numbers, not {row}")
        elif not (1 <= activity <= len(LABELS) and 1 <= first <= last and 1 <= user <= 9999):
            problems.append(f"labels.txt: row {line} is out of range: {row}")
        else:
            segments.append((experiment, user, activity, first, last))
    return segments


def _recording(raw: Path, experiment: int, user: int, problems: list[str]) -> NDArray[np.float64]:
    """Read one experiment as ``[T, 6]`` in m/s² and rad/s, or ``[0, 6]`` with its problems."""
    parts = []
    for sensor, factor in (("acc", STANDARD_GRAVITY), ("gyro", 1.0)):
        name = f"{sensor}_exp{experiment:02}_user{user:02}.txt"
        try:
            parts.append(numbers(raw / name, columns=3) * factor)
        except ValueError as error:
            problems.append(f"{name} {error}")
    if len(parts) == 2 and len(parts[0]) != len(parts[1]):
        problems.append(
            f"experiment {experiment}: {len(parts[0])} acc rows but {len(parts[1])} gyro rows"
        )
    if len(parts) < 2 or len(parts[0]) != len(parts[1]):
        return np.empty((0, 6))
    return np.concatenate(parts, axis=1)
