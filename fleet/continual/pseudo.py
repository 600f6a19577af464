"""Pseudo-labels: what a confident model says of windows that nobody labelled.

The gate is FixMatch's (Sohn et al., arXiv:2001.07685, section 2.2), the cap of each class that of
class-balanced self-training (Zou et al., arXiv:1810.07911). A confident model may be confidently
wrong, the more so after a shift, so a device first asks :func:`worth_it`: how often was the model
right, at this threshold, on labelled windows that it was not trained on?
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import InputError

__all__ = ["agreement", "choose", "wilson_lower_bound", "worth_it"]

ONE_SIDED_95 = 1.6449
DEFAULT_BOUND = 0.9

Probabilities = NDArray[np.floating[Any]]


def choose(
    probabilities: Probabilities,
    *,
    threshold: float,
    per_class: int,
    total: int,
    prior: NDArray[np.floating[Any]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose windows and their pseudo-labels, the most confident of every class first.

    Args:
        probabilities: ``(n, k)``, rows sum to 1.
        threshold: Least probability of the likeliest class, 0 to 1.
        per_class: Most windows of a class.
        total: Most windows in all; classes share it evenly, those with few leave theirs.
        prior: ``(k,)`` class mix of the device where it is known: probabilities are first aligned
            to it, ``p · prior / mean(p)`` (ReMixMatch, Berthelot et al., arXiv:1911.09785,
            section 3.1). None leaves them.

    Returns:
        ``(indices int64 (m,) ascending, labels int64 (m,))``; ties go to the earlier window.

    Raises:
        InputError: ``pseudo-labels`` for arguments out of range.
    """
    _check(probabilities, threshold, per_class, total, prior)
    n, k = probabilities.shape
    if not n:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    p = probabilities.astype(np.float64)
    if prior is not None:
        p = p * prior / np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny)
        p /= np.maximum(p.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    labels, confidence = p.argmax(axis=1), p.max(axis=1)
    sure = np.flatnonzero(confidence >= threshold)
    sure = sure[np.argsort(-confidence[sure], kind="stable")]
    # A window's rank within its class: the first of all classes come before the second of any.
    rank = np.zeros(len(sure), np.int64)
    for label in range(k):
        own = labels[sure] == label
        rank[own] = np.arange(own.sum())
    sure, rank = sure[rank < per_class], rank[rank < per_class]
    chosen = np.sort(sure[np.argsort(rank, kind="stable")[:total]])
    return chosen.astype(np.int64), labels[chosen].astype(np.int64)


def agreement(
    probabilities: Probabilities, y: NDArray[np.int64], threshold: float
) -> tuple[int, int]:
    """Count how often the model is right where it is confident.

    Args:
        probabilities: ``(n, k)`` of labelled windows that were held back from training.
        y: int64 ``(n,)``, their labels.
        threshold: As for :func:`choose`.

    Returns:
        ``(right, confident)``.
    """
    if not len(probabilities):
        return 0, 0
    confident = probabilities.max(axis=1) >= threshold
    right = probabilities.argmax(axis=1) == y
    return int((right & confident).sum()), int(confident.sum())


def wilson_lower_bound(right: int, count: int, z: float = ONE_SIDED_95) -> float:
    """Return the lower end of Wilson's score interval of a share; 0 where ``count`` is 0.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927,
    doi:10.1080/01621459.1927.10502953.

    >>> round(wilson_lower_bound(30, 30), 3)
    0.917

    Raises:
        InputError: ``pseudo-labels`` unless ``0 <= right <= count`` and z is positive.
    """
    if not (0 <= right <= count and 0 < z < math.inf):
        rule = f"a share needs 0 <= right <= count and z > 0, not {right}, {count} and {z}"
        raise InputError("pseudo-labels", rule, "Count with agreement.")
    if not right:
        return 0.0  # in exact arithmetic; rounding would leave more or less than nothing
    share, square = right / count, z * z
    centre = share + square / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, (centre - spread) / (1 + square / count))


def worth_it(
    right: int, confident: int, *, bound: float = DEFAULT_BOUND, z: float = ONE_SIDED_95
) -> bool:
    """Tell whether pseudo-labels are right often enough to be trained on.

    Args:
        right: From :func:`agreement`, on the device's own held-back labelled windows.
        confident: Likewise. At the default bound and z, 25 windows are needed even if all are
            right: with few labels a device rather does without.
        bound: Least precision, 0 to 1.
        z: Quantile of the normal distribution; the default is one-sided 95 %.

    Raises:
        InputError: ``pseudo-labels``.
    """
    if not 0 <= bound <= 1:
        raise InputError("pseudo-labels", f"a precision is 0 to 1, not {bound}", "Try 0.9.")
    return confident > 0 and wilson_lower_bound(right, confident, z) >= bound


def _check(
    probabilities: Probabilities,
    threshold: float,
    per_class: int,
    total: int,
    prior: NDArray[np.floating[Any]] | None,
) -> None:
    problems = []
    if probabilities.ndim != 2 or not probabilities.shape[1]:
        problems.append(f"probabilities must be (n, k), not {probabilities.shape}")
    elif not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        problems.append("probabilities must be finite and not negative")
    if not 0 <= threshold <= 1:
        problems.append(f"threshold must be 0 to 1, not {threshold}")
    if per_class < 0 or total < 0:
        problems.append(f"caps must not be negative, not {per_class} and {total}")
    if prior is not None and (
        prior.shape != probabilities.shape[1:] or not np.isfinite(prior).all() or (prior < 0).any()
    ):
        problems.append("prior must be (k,), finite and not negative")
    if problems:
        raise InputError("pseudo-labels", "; ".join(problems), "See fleet.continual.pseudo.")
