"""The rules of the canonical format, as functions that return every broken one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_LISTED", "agreement", "arrays", "bounded", "counts", "description"]

DTYPES: Mapping[str, tuple[type[np.generic], int]] = {
    "x": (np.int16, 3),
    "scale": (np.float32, 1),
    "y": (np.int16, 1),
    "subject": (np.int16, 1),
    "rec": (np.int32, 1),
}
AXES = {"x": "[windows, channels, time]", "scale": "[channels]"}
MAX_LISTED = 20

Arrays = Mapping[str, NDArray[Any]]


def bounded(problems: Sequence[str], limit: int = MAX_LISTED) -> list[str]:
    """Return at most ``limit`` problems and, when some were left out, a line that counts them.

    >>> bounded(["a", "b", "c"], limit=2)
    ['a', 'b', 'and 1 more']
    """
    left_out = len(problems) - limit
    extra = [f"and {left_out} more"] if left_out > 0 else []
    return [*problems[:limit], *extra]


def description(content: Mapping[str, Any]) -> list[str]:
    """Return the problems of the JSON alone: labels, channels, rate, window and stride."""
    problems = []
    if not (isinstance(content.get("name"), str) and content["name"]):
        problems.append(f"name must be a non-empty string, not {content.get('name')!r}")
    problems += _label_problems(content.get("labels"))
    problems += _channel_problems(content.get("channels"))
    rate = content.get("sampling_rate_hz")
    if not _is_number(rate) or not math.isfinite(rate) or rate <= 0:
        problems.append(f"sampling_rate_hz must be a positive number, not {rate!r}")
    window, stride = content.get("window"), content.get("stride")
    problems += [
        f"{key} must be a positive whole number of samples, not {value!r}"
        for key, value in (("window", window), ("stride", stride))
        if not _is_positive_int(value)
    ]
    if _is_positive_int(window) and _is_positive_int(stride) and stride > window:
        problems.append(f"stride {stride} must not exceed window {window}")
    return problems


def arrays(content: Arrays) -> list[str]:
    """Return the problems of the arrays alone: presence, dtype, axes, scale and recordings."""
    problems = [f"array {name!r} is missing" for name in DTYPES if name not in content]
    for name in DTYPES:
        if name in content:
            problems += _array_problems(name, content[name])
    if problems:
        return problems
    windows, channels, _ = content["x"].shape
    if content["x"].size == 0:
        problems.append(f"x must hold at least one window, but has shape {content['x'].shape}")
    for name in ("y", "subject", "rec"):
        if len(content[name]) != windows:
            problems.append(f"{name} has {len(content[name])} rows but x has {windows} windows")
    scale = content["scale"]
    if len(scale) != channels:
        problems.append(f"scale has {len(scale)} values but x has {channels} channels")
    if not (np.isfinite(scale) & (scale > 0)).all():
        problems.append(f"scale must be finite and positive, not {scale.tolist()}")
    return problems or _recording_problems(content["subject"], content["rec"])


def agreement(content: Mapping[str, Any], data: Arrays) -> list[str]:
    """Return where the JSON and the arrays contradict each other, as far as both can be read."""
    problems = []
    x, y, labels = data.get("x"), data.get("y"), content.get("labels")
    if x is not None and x.ndim == 3:
        described = content.get("channels")
        if isinstance(described, list) and described and len(described) != x.shape[1]:
            problems.append(f"{len(described)} channels are described but x has {x.shape[1]}")
        if _is_positive_int(content.get("window")) and content["window"] != x.shape[2]:
            problems.append(f"window is {content['window']} samples but x has {x.shape[2]} in each")
    if y is not None and y.dtype.kind == "i" and isinstance(labels, list) and labels:
        outside = sorted(set(y[(y < 0) | (y >= len(labels))].ravel().tolist()))
        if outside:
            problems.append(f"y must lie in 0..{len(labels) - 1} but holds {outside[:5]}")
    return problems


def counts(labels: Sequence[str], data: Arrays) -> dict[str, Any]:
    """Return what the JSON says of the arrays: shape, people and windows of each.

    Returns:
        ``shape``, ``n_windows``, ``n_subjects``, ``subjects``, ``windows_per_subject`` (keys are
        decimal strings, as JSON demands) and ``windows_per_label``.
    """
    subjects, per_subject = np.unique(data["subject"], return_counts=True)
    per_label = np.bincount(data["y"], minlength=len(labels))
    return {
        "shape": list(data["x"].shape),
        "n_windows": len(data["x"]),
        "n_subjects": len(subjects),
        "subjects": subjects.tolist(),
        "windows_per_subject": {
            str(person): int(n) for person, n in zip(subjects, per_subject, strict=True)
        },
        "windows_per_label": {label: int(n) for label, n in zip(labels, per_label, strict=True)},
    }


def _label_problems(labels: object) -> list[str]:
    if not isinstance(labels, list) or not labels:
        return [f"labels must be a non-empty list of names, not {labels!r}"]
    if not all(isinstance(label, str) and label for label in labels):
        return [f"labels must be non-empty strings, not {labels!r}"]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    return [f"labels must be unique, but {', '.join(twice)} comes twice"] if twice else []


def _channel_problems(channels: object) -> list[str]:
    if not isinstance(channels, list) or not channels:
        return [f"channels must be a non-empty list of {{name, unit}}, not {channels!r}"]
    problems = []
    names: list[str] = []
    for position, channel in enumerate(channels):
        pair = channel if isinstance(channel, dict) else {}
        for key in ("name", "unit"):
            if not (isinstance(pair.get(key), str) and pair[key]):
                problems.append(f"channel {position} needs a {key} (a non-empty string)")
        names.append(str(pair.get("name")))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and not problems:
        problems.append(f"channel names must be unique, but {', '.join(twice)} comes twice")
    return problems


def _array_problems(name: str, array: NDArray[Any]) -> list[str]:
    dtype, ndim = DTYPES[name]
    problems = []
    if array.dtype != dtype:
        problems.append(f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
        if name == "x" and array.dtype.kind == "f":
            problems[-1] += "; convert it with fleet.har.canonical.quantise(x) -> (x, scale)"
    if array.ndim != ndim:
        axes = AXES.get(name, "[windows]")
        problems.append(f"{name} must have {ndim} axes {axes}, but has shape {array.shape}")
    return problems


def _recording_problems(subject: NDArray[np.int16], rec: NDArray[np.int32]) -> list[str]:
    problems = []
    if (subject < 0).any():
        problems.append(f"subject must not be negative, but holds {int(subject.min())}")
    pairs = np.unique(np.stack([rec.astype(np.int64), subject.astype(np.int64)]), axis=1)
    ids, people = np.unique(pairs[0], return_counts=True)
    shared = ids[people > 1].tolist()
    if shared:
        problems.append(f"recordings must belong to one subject each, but {shared[:5]} do not")
    return problems


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
