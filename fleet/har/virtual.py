"""Virtual devices: many devices made of few people, each on demand and without being stored.

A device is a name. What it holds follows from the name and the run's seed: of each class a range
of time of a person's past, a part of that person's future, and the physics of a sensor of its own.
Nothing is kept between two questions but the split of each person into past and future, so ten
thousand devices take the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from fleet.config import RunConfig
from fleet.har.dataset import DataSet
from fleet.har.normalise import Normalisation
from fleet.har.partition import Share, chronological, device_name
from fleet.har.population import LabelledWindows, Population, labelled
from fleet.har.shifts import Shift, parse
from fleet.seeds import derive_seed, generator

__all__ = ["VirtualFleet", "virtual_fleet"]

# The split of a person costs a search for shared samples and holds a few kilobytes of indices.
LARGEST_SPLITS_HELD = 256

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Split:
    """A person's past and future: of each class its rows, int64, in time order."""

    past: tuple[Rows, ...]
    future: tuple[Rows, ...]


@dataclass(frozen=True, eq=False)
class VirtualFleet:
    """The devices of a run, as a function of their partition ids.

    Attributes:
        population: Whose windows the devices hold.
        devices: Their number; 0 for one of each fleet person, named after that person.
        windows_per_device: Most windows that a device trains on, and as many that it is tested on;
            0 for all.
        class_mix: Concentration of the Dirichlet distribution that a device's classes are drawn
            from; 0 leaves them as the person has them.
        variation: What differs from device to device, beyond the population's shift.
        train_fraction: Share of a person's windows, in time order, that is the past.
        seed: Root of every choice.
    """

    population: Population
    devices: int
    windows_per_device: int
    class_mix: float
    variation: Shift | None
    train_fraction: float
    seed: int
    _split: Callable[[int], _Split] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        make = partial(_split_person, self.population.dataset, self.train_fraction)
        object.__setattr__(self, "_split", lru_cache(maxsize=LARGEST_SPLITS_HELD)(make))

    def __len__(self) -> int:
        return self.devices or len(self.population.fleet)

    def name(self, partition: int) -> str:
        """Return a device's name: ``device-00042``, or ``person-07`` where persons are devices.

        Raises:
            IndexError: Unless ``partition`` is 0 to the number of devices less one.
        """
        self._check(partition)
        return f"device-{partition:05d}" if self.devices else device_name(self.person(partition))

    def person(self, partition: int) -> int:
        """Return whose windows a device holds; devices go round the people.

        Raises:
            IndexError: See :meth:`name`.
        """
        self._check(partition)
        return self.population.fleet[partition % len(self.population.fleet)]

    def share(self, partition: int) -> Share:
        """Return a device's windows as ascending rows of the data set; no window is read.

        Raises:
            IndexError: See :meth:`name`.
        """
        name, split = self.name(partition), self._split(self.person(partition))
        return Share(
            name,
            self.person(partition),
            self._draw(name, "past", split.past, self.class_mix),
            # The same mix for all devices of a person: a test asks what was forgotten, too.
            self._draw(name, "future", split.future, 0.0),
        )

    def windows(
        self, partition: int, normalisation: Normalisation
    ) -> tuple[LabelledWindows, LabelledWindows]:
        """Make a device's training and test windows, as its own sensor gives them.

        Args:
            partition: Which device.
            normalisation: From source people.

        Returns:
            New arrays, the same at every call; of no device but this one anything is made.

        Raises:
            IndexError: See :meth:`name`.
            DataError: When a shift does not suit the channels.
        """
        share, dataset = self.share(partition), self.population.dataset
        # Past and future in one call: one device has one noise level, never the same noise twice.
        x = dataset.physical(np.concatenate([share.train, share.test]))
        seeds = (self.seed, derive_seed(self.seed, 0, share.name, "variation"))
        # The second seed is the device's own, so that what a shift calls common to the fleet, as
        # the sign of a gain or the axis of a rotation, differs from device to device as well.
        for shift, seed in zip((self.population.shift, self.variation), seeds, strict=True):
            if shift is not None:
                x = shift.apply(x, dataset.channels, dataset.rate_hz, seed=seed, device=share.name)
        past = len(share.train)
        train = labelled(dataset, share.train, x[:past], normalisation)
        return train, labelled(dataset, share.test, x[past:], normalisation)

    def _draw(self, name: str, part: str, classes: tuple[Rows, ...], mix: float) -> Rows:
        """Draw a device's windows: of every class one range of time, at the same point of it."""
        held = np.array([len(rows) for rows in classes], dtype=np.int64)
        if not held.sum():
            return np.zeros(0, np.int64)
        shares = held / held.sum()
        if mix:
            # Around the person's own proportions, as Hsu et al., arXiv:1909.06335, around a set's.
            shares = generator(self.seed, 0, name, f"virtual/{part}/mix").dirichlet(mix * shares)
        counts = _counts(held, shares, self.windows_per_device)
        point = generator(self.seed, 0, name, f"virtual/{part}/time").random()
        starts = np.floor(point * (held - counts + 1)).astype(np.int64)
        ranges = zip(classes, starts, counts, strict=True)
        return np.sort(np.concatenate([rows[at : at + count] for rows, at, count in ranges]))

    def _check(self, partition: int) -> None:
        if not 0 <= partition < len(self):
            raise IndexError(f"this fleet has {len(self)} devices; there is no {partition}")


def virtual_fleet(config: RunConfig, population: Population) -> VirtualFleet:
    """Return the devices of a run.

    Raises:
        InputError: ``bad-shift`` for a variation that is none.
        DataError: ``no-triples`` for one that the channels do not allow.
    """
    variation = parse(config.variation)
    if variation is not None:
        dataset = population.dataset
        nothing = np.zeros((0, len(dataset.channels), dataset.window), np.float32)
        variation.apply(nothing, dataset.channels, dataset.rate_hz, seed=0, device="none")
    return VirtualFleet(
        population,
        devices=config.devices,
        windows_per_device=config.windows_per_device,
        class_mix=config.class_mix,
        variation=variation,
        train_fraction=config.train_fraction,
        seed=config.seed,
    )


def _split_person(dataset: DataSet, train_fraction: float, person: int) -> _Split:
    share = chronological(dataset, person, train_fraction)
    return _Split(_by_class(dataset, share.train), _by_class(dataset, share.test))


def _by_class(dataset: DataSet, rows: Rows) -> tuple[Rows, ...]:
    rows = rows[np.argsort(dataset.rec[rows], kind="stable")]
    return tuple(rows[dataset.y[rows] == label] for label in np.unique(dataset.y[rows]))


def _counts(held: Rows, shares: NDArray[np.float64], limit: int) -> Rows:
    """Return how many windows of each class to take, int64 ``[classes]``.

    As many as ``held`` (positive) allows without departing from ``shares`` (sum 1), but at most
    ``limit`` in all unless that is 0; at least one, rounded by largest remainder.
    """
    # A share too small for one window of a trillion limits nothing, and overflows nothing either.
    room = held / np.maximum(shares, 1e-12)
    total = int(np.floor(room.min() + 1e-9))
    total = min(total, limit) if limit else total
    wanted = total * shares
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    most_wanted = np.argsort(counts - wanted, kind="stable")
    counts[most_wanted[: total - counts.sum()]] += 1
    return np.minimum(counts, held)
