"""A data set at a glance: people by class, minutes, and each channel's range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleet.har.dataset import DataSet

__all__ = ["ChannelSummary", "Summary", "summarise"]


@dataclass(frozen=True)
class ChannelSummary:
    """The values of one channel, in its unit."""

    name: str
    unit: str
    minimum: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class Summary:
    """Counts and ranges of a data set.

    Attributes:
        windows: Number of windows.
        recordings: Number of recordings.
        minutes: Time that the windows advance, ``windows * stride / rate``: overlaps count once.
        per_label: Windows of each label, in the order of the labels.
        per_subject: Windows of each person by label, in ascending order of the people.
        channels: One per channel.
    """

    windows: int
    recordings: int
    minutes: float
    per_label: tuple[int, ...]
    per_subject: dict[int, tuple[int, ...]]
    channels: tuple[ChannelSummary, ...]


def summarise(dataset: DataSet) -> Summary:
    """Summarise a data set."""
    classes = len(dataset.labels)
    per_subject = {
        person: tuple(np.bincount(dataset.y[dataset.subject == person], minlength=classes).tolist())
        for person in dataset.subjects
    }
    return Summary(
        windows=len(dataset.x),
        recordings=len(np.unique(dataset.rec)),
        minutes=len(dataset.x) * dataset.stride / dataset.rate_hz / 60,
        per_label=tuple(np.bincount(dataset.y, minlength=classes).tolist()),
        per_subject=per_subject,
        channels=tuple(_channel(dataset, place) for place in range(len(dataset.channels))),
    )


def _channel(dataset: DataSet, place: int) -> ChannelSummary:
    steps, unit_per_step = dataset.x[:, place], float(dataset.scale[place])
    return ChannelSummary(
        name=dataset.channels[place].name,
        unit=dataset.channels[place].unit,
        minimum=int(steps.min()) * unit_per_step,
        maximum=int(steps.max()) * unit_per_step,
        mean=float(steps.mean(dtype=np.float64)) * unit_per_step,
        std=float(steps.std(dtype=np.float64)) * unit_per_step,
    )
