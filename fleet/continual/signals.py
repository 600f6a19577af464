"""What a device can say of a window without its label: confidence, entropy, feature distance.

All signals move when the sensor does, and also when the wearer sits down: what they mean depends on
the activity. So :func:`signals` puts the predicted class first, and a detector compares a window
with earlier ones of that class (:class:`fleet.continual.drift.LabelFreeDrift`).

Compute them with a model that stays, the base: a release moves them as a drift would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import InputError

__all__ = ["Reference", "confidence", "entropy", "feature_distance", "signals"]

# Of the mean variance, added to each direction: few windows leave some of them without any.
SHRINKAGE = 1e-3
SMALLEST = 1e-6

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reference:
    """What penultimate features look like on source people.

    Args:
        means: float64 ``(k, d)``, mean features of the windows predicted as each class; of all
            windows where there is none.
        whitening: float64 ``(d, d)``: times it, features have unit variance about the mean of
            their class in every direction (one covariance for all classes).
    """

    means: Doubles
    whitening: Doubles

    @classmethod
    def of(cls, features: Floats, predicted: NDArray[np.int64], classes: int) -> Reference:
        """Fit to features ``(n, d)`` and predicted classes ``(n,)`` of source windows.

        Raises:
            InputError: ``no-reference`` for fewer than two windows or shapes that differ.
        """
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or len(x) < 2 or predicted.shape != x.shape[:1]:
            rule = f"a reference needs features (n, d) and n >= 2 classes, not {x.shape} and "
            raise InputError("no-reference", f"{rule}{predicted.shape}", "Use source windows.")
        own = [x[predicted == label] for label in range(classes)]
        means = np.stack([each.mean(axis=0) if len(each) else x.mean(axis=0) for each in own])
        rest = x - means[predicted]
        covariance = rest.T @ rest / len(x)
        spread = max(float(np.trace(covariance)) / x.shape[1], SMALLEST)
        covariance += SHRINKAGE * spread * np.eye(x.shape[1])
        return cls(means, np.linalg.cholesky(np.linalg.inv(covariance)))


def confidence(logits: Floats) -> Doubles:
    """Return the probability of the likeliest class, ``(n,)`` of logits ``(n, k)``.

    Hendrycks & Gimpel, arXiv:1610.02136.

    >>> confidence(np.zeros((1, 4)))
    array([0.25])
    """
    largest: Doubles = _softmax(logits).max(axis=1)
    return largest


def entropy(logits: Floats) -> Doubles:
    """Return the prediction's entropy over its largest, ``(n,)`` in 0 to 1, of ``(n, k)``.

    >>> entropy(np.zeros((1, 4))).round(6)
    array([1.])
    """
    p = _softmax(logits)
    whole: Doubles = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
    share: Doubles = whole / np.log(max(p.shape[1], 2))
    return share


def feature_distance(
    features: Floats, reference: Reference, predicted: NDArray[np.int64]
) -> Doubles:
    """Return how far features are from those of source people at the same prediction.

    The Mahalanobis distance of Lee et al., arXiv:1807.03888, eq. 2, with the predicted in place of
    the nearest class, over the root of the dimensions: about 1 for source windows.

    Args:
        features: ``(n, d)``, what the head sees.
        reference: Of the same model.
        predicted: int64 ``(n,)``.

    Returns:
        float64 ``(n,)``, not negative.
    """
    rest = (features - reference.means[predicted]) @ reference.whitening
    distance: Doubles = np.sqrt((rest**2).mean(axis=1))
    return distance


def signals(logits: Floats, features: Floats, reference: Reference) -> Doubles:
    """Return what :class:`~fleet.continual.drift.LabelFreeDrift` takes by default.

    Args:
        logits: ``(n, k)``.
        features: ``(n, d)`` of the same windows.
        reference: Of the same model.

    Returns:
        float64 ``(n, 3)``: the predicted class, the logarithm of the feature distance and that of
        the doubt, one less the confidence. Logarithms, since both are skewed.
    """
    predicted = logits.argmax(axis=1)
    distance = feature_distance(features, reference, predicted)
    columns = (np.maximum(distance, SMALLEST), np.maximum(1 - confidence(logits), SMALLEST))
    return np.stack([predicted, *(np.log(each) for each in columns)], axis=1)


def _softmax(logits: Floats) -> Doubles:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    whole: Doubles = powers / powers.sum(axis=1, keepdims=True)
    return whole
