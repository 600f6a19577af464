"""The probe: a release must not do worse on the labelled windows that the device keeps aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from clients.agent.serving.records import ProbeReading
from clients.agent.serving.whole import Whole
from fleet.adapt.base import BaseRecord
from fleet.adapt.train import predict
from fleet.errors import InputError
from fleet.har.normalise import Normalisation
from fleet.measure.f1 import confusion, macro_f1_present

__all__ = ["MARGIN", "MIN_WINDOWS", "Probe", "judge", "normalisation_of"]

MARGIN = 0.05
MIN_WINDOWS = 20


@dataclass(frozen=True, eq=False)
class Probe:
    """Labelled windows that were never trained on, and by how much macro-F1 may fall on them.

    Args:
        x: Windows ``(n, channels, window)`` float32, normalised as the base asks, as
            ``Learner``'s are; :meth:`of_raw` takes them in the base's units.
        y: Classes ``(n,)`` int64.
        margin: Largest fall of macro-F1 over the classes that the windows hold, 0 to 1.
        min_windows: With fewer the probe says too little: it is noted and skipped.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    margin: float = MARGIN
    min_windows: int = MIN_WINDOWS

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1:
            raise InputError("probe-margin", f"a margin is 0 to 1, not {self.margin}")
        if self.x.ndim != 3 or self.y.shape != self.x.shape[:1]:
            raise InputError(
                "probe-shape",
                f"a probe is windows (n, channels, window) and classes (n,), not {self.x.shape} "
                f"and {self.y.shape}",
            )

    @classmethod
    def of_raw(
        cls,
        about: BaseRecord,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        *,
        margin: float = MARGIN,
        min_windows: int = MIN_WINDOWS,
    ) -> Probe:
        """Make a probe of windows in the base's units; ``margin`` and ``min_windows`` as above."""
        return cls(normalisation_of(about).apply(x), y, margin, min_windows)


def normalisation_of(about: BaseRecord) -> Normalisation:
    """Return the normalisation that a base asks for."""
    return Normalisation(np.array(about.mean, np.float32), np.array(about.std, np.float32))


def judge(probe: Probe | None, before: Whole, after: Whole) -> ProbeReading:
    """Compare two models on a probe.

    Args:
        probe: None when the device has no labelled windows. Its windows are normalised as
            ``before`` asks.
        before: What is served now.
        after: What is to be served, of the same windows and classes; also of another base, which
            may normalise otherwise and have further classes.

    Raises:
        InputError: ``probe-shape`` when the windows are not the base's.
        MismatchError: ``class-range`` when a class is none of the base's.
    """
    if probe is None:
        return ProbeReading(windows=0, margin=MARGIN, note="skipped: no labelled windows")
    count = len(probe.y)
    if count < max(probe.min_windows, 1):
        note = f"skipped: {count} labelled windows, {probe.min_windows} are needed"
        return ProbeReading(windows=count, margin=probe.margin, note=note)
    about = after.about
    if probe.x.shape[1:] != (about.model.channels, about.model.window):
        raise InputError(
            "probe-shape",
            f"the base takes windows ({about.model.channels}, {about.model.window}), the probe's "
            f"are {probe.x.shape[1:]}",
        )
    classes = max(len(before.about.labels), len(about.labels))
    scores = [
        macro_f1_present(confusion(probe.y, predict(whole.network, x), classes))
        for whole, x in (
            (before, _windows(probe.x)),
            (after, _windows(_normalised_as(probe.x, before.about, about))),
        )
    ]
    return ProbeReading(windows=count, margin=probe.margin, before=scores[0], after=scores[1])


def _normalised_as(x: NDArray[np.float32], now: BaseRecord, new: BaseRecord) -> NDArray[np.float32]:
    if (now.mean, now.std) == (new.mean, new.std):
        return x
    before = normalisation_of(now)
    raw = x * before.std[None, :, None] + before.mean[None, :, None]
    return normalisation_of(new).apply(raw.astype(np.float32))


def _windows(x: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))
