"""USC-HAD: a MotionNode on the front right hip, 14 people, twelve activities.

The official layout is ``USC-HAD/SubjectN/a{1..12}t{1..5}.mat``, 100 Hz, decimated to 50 Hz here.
The activity comes from the file's name: one file spells its field ``activity_numbr`` and
``Subject14/a3t2.mat`` says 2 inside. Elevator rides and standing are barely separable.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import UnavailableError
from fleet.har.assembly import INERTIAL, Piece, assemble
from fleet.har.dataset import DataSet
from fleet.har.downloads import find_folder, finish, opened
from fleet.har.windows import STANDARD_GRAVITY, decimate

__all__ = ["LABELS", "load"]

LABELS = (
    "walking_forward",
    "walking_left",
    "walking_right",
    "walking_upstairs",
    "walking_downstairs",
    "running_forward",
    "jumping_up",
    "sitting",
    "standing",
    "sleeping",
    "elevator_up",
    "elevator_down",
)
TRIALS = 5
# By name, not by number: so the published recordings are numbered (a10t1, ..., a1t1, ...).
FILES = tuple(
    sorted(f"a{activity}t{trial}.mat" for activity in range(1, 13) for trial in range(1, 6))
)
FACTORS = np.array([STANDARD_GRAVITY] * 3 + [np.pi / 180] * 3)
LAYOUT = (
    "Expected USC-HAD/SubjectN/ with a1t1.mat ... a12t5.mat each (any subset of the 14 people)."
)
INFO = {
    "title": "USC-HAD",
    "raw_units": "acc g, gyro deg/s (acc * 9.80665 and gyro * pi / 180 here)",
    "placement": "front right hip, MotionNode",
    "native_rate": "100 Hz, decimated by 2 with a zero-phase FIR",
    "label_rule": "one label per file (taken from the file name)",
    "licence": "no licence text; the authors offer it free for research",
    "citation": "Zhang, Sawchuk: USC-HAD: A Daily Activity Dataset for Ubiquitous Activity"
    " Recognition Using Wearable Sensors. UbiComp 2012 Workshop SAGAware",
}


def load(root: Path) -> DataSet:
    """Convert the official download, or any subset of its people.

    Args:
        root: The unpacked folder, at any level above ``SubjectN``, or the archive.

    Returns:
        12 classes, 6 channels, 50 Hz, windows of 128 at stride 64; ``rec`` is
        ``60 * (person - 1) +`` the file's place among the 60 sorted names.

    Raises:
        DataError: ``layout-unknown``, ``download-broken`` with every missing or garbled file, or
            what the archive breaks.
        UnavailableError: ``scipy-missing``: scipy reads the ``.mat`` files.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "scipy-missing", "USC-HAD's .mat files need scipy", "pip install 'corefleet[sim]'"
        ) from error
    with opened(root, _wanted) as folder:
        base = find_folder(folder, lambda path: bool(_people(path)), root, LAYOUT)
        problems: list[str] = []
        pieces = []
        for person, home in sorted(_people(base).items()):
            for place, name in enumerate(FILES):
                samples = _recording(home / name, loadmat, problems)
                label = int(name[1 : name.index("t")]) - 1
                rec = len(FILES) * (person - 1) + place
                pieces.append(Piece(samples, label, person, rec))
        finish(problems, root, LAYOUT)
    return assemble("usc_had", LABELS, INERTIAL, pieces, INFO)


def _wanted(path: PurePosixPath) -> bool:
    return path.suffix == ".mat"


def _people(folder: Path) -> dict[int, Path]:
    people = {}
    for child in folder.iterdir():
        number = re.fullmatch(r"Subject([1-9]\d{0,2})", child.name)
        if number and any(child.glob("a*t*.mat")):
            people[int(number[1])] = child
    return people


def _recording(path: Path, loadmat: Any, problems: list[str]) -> NDArray[np.float64]:
    """Read one trial as ``[T, 6]`` in m/s² and rad/s at 50 Hz, or ``[0, 6]`` with its problem."""
    name = f"{path.parent.name}/{path.name}"
    readings = None
    if not path.is_file():
        problems.append(f"{name} is missing")
        return np.empty((0, 6))
    try:
        readings = np.asarray(loadmat(path, variable_names=["sensor_readings"])["sensor_readings"])
    except KeyError:
        problems.append(f"{name} lacks the field sensor_readings")
    except Exception as error:
        # A damaged file makes scipy raise almost anything, so every failure counts as garbled.
        problems.append(f"{name} is no readable .mat file: {type(error).__name__}: {error}")
    if readings is None:
        return np.empty((0, 6))
    if readings.ndim != 2 or readings.shape[1] != 6 or readings.dtype.kind not in "fiu":
        problems.append(f"{name}: sensor_readings must be [T, 6], not {readings.shape}")
    elif not np.isfinite(readings).all():
        problems.append(f"{name}: sensor_readings holds NaN or Inf")
    else:
        return decimate(readings.astype(np.float64) * FACTORS, 2)
    return np.empty((0, 6))
