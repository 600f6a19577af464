"""The people of a run: who trains the base, who forms the fleet, and what each device sees.

Server, devices and every simulation engine derive the same population from the same configuration,
so none of them has to send windows to another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.config import RunConfig
from fleet.har.dataset import DataSet, select_labels
from fleet.har.mapped import mapped
from fleet.har.normalise import Normalisation
from fleet.har.partition import Share, chronological, device_name, pool, split_people
from fleet.har.shifts import Shift, parse
from fleet.har.sources import basic_labels, default_name, find

__all__ = [
    "LabelledWindows",
    "Population",
    "labelled",
    "population_of",
    "share_windows",
    "windows_of",
]


@dataclass(frozen=True, eq=False)
class LabelledWindows:
    """Normalised windows ``x (n, channels, window)`` float32 and labels ``y (n,)`` int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Population:
    """A data set and its people.

    Args:
        dataset: Only the classes that the run uses.
        source: People that the base is trained on.
        fleet: People whose windows the devices hold, ascending; see ``fleet.har.virtual``.
        shift: How the fleet's sensors differ from the source's.
    """

    dataset: DataSet
    source: tuple[int, ...]
    fleet: tuple[int, ...]
    shift: Shift | None

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices where each person has one, in the order of their partition ids."""
        return tuple(device_name(person) for person in self.fleet)


def population_of(config: RunConfig, dataset: DataSet | None = None) -> Population:
    """Find the data of a run and divide its people.

    Args:
        config: The run.
        dataset: The data set where it is at hand; else ``config.data`` is looked up.

    Returns:
        The people; with ``config.devices`` the windows are mapped from a file where possible, so
        that the processes of a large fleet share them.
    """
    shift = parse(config.shift)
    dataset = find(config.data or default_name()) if dataset is None else dataset
    if config.classes == "basic":
        wanted = basic_labels(dataset)
        if wanted != dataset.labels:
            dataset = select_labels(dataset, wanted)
    if config.devices:
        dataset = mapped(dataset)
    source, fleet = split_people(dataset.subjects, config.seed, config.fleet_fraction)
    return Population(dataset, source, fleet, shift)


def windows_of(
    population: Population, people: Iterable[int], normalisation: Normalisation
) -> LabelledWindows:
    """Return all windows of people as their sensors gave them, normalised."""
    rows = pool(population.dataset, people)
    dataset = population.dataset
    return labelled(dataset, rows, dataset.physical(rows), normalisation)


def share_windows(
    population: Population,
    person: int,
    normalisation: Normalisation,
    *,
    train_fraction: float,
    seed: int,
    shifted: bool = True,
) -> tuple[Share, LabelledWindows, LabelledWindows]:
    """Return one device's past and future windows, shifted as its sensor is.

    Args:
        population: The run's people.
        person: Whose device.
        normalisation: From source people.
        train_fraction: Share of each class, in time order, that is the past.
        seed: Root seed of the shift.
        shifted: Whether the population's shift applies.

    Returns:
        The share's rows, the training windows and the test windows.
    """
    dataset = population.dataset
    share = chronological(dataset, person, train_fraction)
    # Past and future in one call: one device has one noise level, and never the same noise twice.
    x = dataset.physical(np.concatenate([share.train, share.test]))
    if shifted and population.shift is not None:
        x = population.shift.apply(
            x, dataset.channels, dataset.rate_hz, seed=seed, device=share.name
        )
    past = len(share.train)
    train = labelled(dataset, share.train, x[:past], normalisation)
    return share, train, labelled(dataset, share.test, x[past:], normalisation)


def labelled(
    dataset: DataSet,
    rows: NDArray[np.int64],
    x: NDArray[np.float32],
    normalisation: Normalisation,
) -> LabelledWindows:
    """Normalise windows and give them their labels.

    Args:
        dataset: Where the labels are.
        rows: int64 ``[n]`` of the data set.
        x: float32 ``[n, channels, window]`` of those rows, in physical units.
        normalisation: From source people.
    """
    return LabelledWindows(normalisation.apply(x), dataset.y[rows].astype(np.int64))
