"""A scenario on a data set: what each device sees, period by period, made on demand.

A device is a number. What it sees in a period follows from seed, number and period alone, so every
engine and every process agrees on it, in whatever order they ask, and no window is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from fleet.continual.changes import Change, changes_of
from fleet.continual.class_order import classes_of, order_of, relabelled
from fleet.continual.draws import Habits, Person, Rows, counts_of, habits_of, person_of, take
from fleet.continual.events import ShiftEvent
from fleet.continual.membership import (
    NEVER,
    Membership,
    device_name,
    membership,
    online,
    touched,
)
from fleet.continual.physics import Part, apply, parts_of, text_of
from fleet.continual.scenario import Scenario
from fleet.errors import InputError
from fleet.har.dataset import DataSet
from fleet.har.normalise import Normalisation
from fleet.har.population import LabelledWindows, Population, labelled
from fleet.har.shifts import parse
from fleet.seeds import generator

__all__ = ["NEVER", "Arrival", "Change", "Timeline"]

# The split of a person costs a search for shared samples and holds a few kilobytes of indices.
LARGEST_PEOPLE_HELD = 256
# Counts of windows per class and period, of so many devices as fit.
LARGEST_COUNTS_BYTES = 32 * 2**20

PAST, FUTURE = "past", "future"


@dataclass(frozen=True, eq=False)
class Arrival:
    """The windows that a device sees in a period, in time order.

    Attributes:
        x: float32 ``[n, c, t]``, normalised.
        y: int64 ``[n]``, indices of :attr:`Timeline.labels`.
        known_at: int64 ``[n]``, the first period whose round may use the label; :data:`NEVER`
            where none may.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    known_at: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """What a scenario makes of a population.

    All methods are pure functions of their arguments and ``seed``; they raise ``IndexError`` for a
    device or a period that there is none of. What a scenario changes later does not touch earlier
    periods.

    Args:
        scenario: What happens.
        population: Whose windows the devices see; without a shift. Devices go round its fleet
            people.
        seed: Root of every choice.
        train_fraction: Share of a person's windows, in time order, that arrives; from the rest
            come the held-out ones.

    Attributes:
        dataset: The population's, with labels in order of arrival, without those that never
            appear; ``y`` of everything here indexes them.

    Raises:
        InputError: ``scenario-classes`` when the data set lacks the classes that the scenario
            speaks of; ``scenario-shift`` when the population has a shift of its own.
        DataError: ``no-triples`` when a shift does not suit the channels.
    """

    scenario: Scenario
    population: Population
    seed: int = field(kw_only=True)
    train_fraction: float = field(default=0.6, kw_only=True)
    dataset: DataSet = field(init=False, repr=False)
    _habits: Habits = field(init=False, repr=False)
    _members: Membership = field(init=False, repr=False)
    _shifts: tuple[tuple[ShiftEvent, NDArray[np.bool_]], ...] = field(init=False, repr=False)
    _person: Callable[[int], Person] = field(init=False, repr=False)
    _counts: Callable[[int, str], Rows] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scenario, seed = self.scenario, self.seed
        if self.population.shift is not None:
            rule = f"a scenario has shifts of its own; the population has {self.population.shift}"
            raise InputError("scenario-shift", rule, "Make the population with shift 'none'.")
        labels = order_of(scenario, self.population.dataset)
        classes = classes_of(scenario, len(labels))
        dataset = relabelled(self.population.dataset, labels[: classes[-1]])
        shifts = tuple(
            (event, touched(event.share, scenario.devices, seed, number))
            for number, event in enumerate(scenario.events)
            if isinstance(event, ShiftEvent)
        )
        person = partial(person_of, dataset, self.train_fraction)
        held = LARGEST_COUNTS_BYTES // (8 * scenario.periods * len(dataset.labels))
        made = {
            "dataset": dataset,
            "_habits": habits_of(scenario, classes),
            "_members": membership(scenario, seed),
            "_shifts": shifts,
            "_person": lru_cache(maxsize=LARGEST_PEOPLE_HELD)(person),
            "_counts": lru_cache(maxsize=max(held, 1))(self._draw_counts),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)
        self._check_channels()

    def __len__(self) -> int:
        return self.scenario.devices

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in order of arrival; what there is at the start comes first."""
        return self.dataset.labels

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and samples of a window."""
        return len(self.dataset.channels), self.dataset.window

    def name(self, device: int) -> str:
        """Return a device's name, e.g. ``device-00042``."""
        self._check(device)
        return device_name(device)

    def person(self, device: int) -> int:
        """Return whose windows a device sees."""
        self._check(device)
        return self.population.fleet[device % len(self.population.fleet)]

    def classes_at(self, period: int) -> int:
        """Return how many classes have appeared: the first so many of :attr:`labels`."""
        self._check(0, period)
        return int(self._habits.classes[period])

    def present(self, device: int, period: int) -> bool:
        """Tell whether a device has joined and not left."""
        self._check(device, period)
        return bool(self._members.joined[device] <= period < self._members.left[device])

    def online(self, device: int, period: int) -> bool:
        """Tell whether a device is there and can take part in the period's round."""
        return self.present(device, period) and online(self.scenario, device, period, self.seed)

    def shift_at(self, device: int, period: int) -> str:
        """Return what a device's sensor is like, e.g. ``remount:35+gain:12.5``, or ``none``."""
        self._check(device, period)
        return text_of(self._parts(device, period))

    def changes(self) -> tuple[Change, ...]:
        """Return what a plot marks, by period."""
        return changes_of(self.scenario, self.labels, self._members, self._shifts)

    def counts(self, device: int, period: int) -> NDArray[np.int64]:
        """Return how many windows of each class arrive, int64 ``[classes]``; reads no window."""
        self._check(device, period)
        counts: NDArray[np.int64] = self._counts(device, PAST)[period].copy()
        return counts

    def known_at(self, device: int, period: int) -> NDArray[np.int64]:
        """Return :attr:`Arrival.known_at` of a period's windows; reads none."""
        count = int(self.counts(device, period).sum())
        draws = generator(self.seed, period, self.name(device), "timeline/labels").random(count)
        known = draws < self.scenario.label_fraction
        return np.where(known, period + self.scenario.label_delay, NEVER).astype(np.int64)

    def rows(self, device: int, period: int, *, held_out: bool = False) -> NDArray[np.int64]:
        """Return which rows of :attr:`dataset` a device sees, in time order; reads no window."""
        self._check(device, period)
        draw, person = FUTURE if held_out else PAST, self._person(self.person(device))
        decks = person.future if held_out else person.past
        counts, name = self._counts(device, draw), self.name(device)
        before = counts[:period].sum(axis=0).tolist()
        drawn = np.concatenate(
            [
                take(deck, before[label], count, self.seed, name, f"timeline/{draw}/{label}")
                for label, (deck, count) in enumerate(
                    zip(decks, counts[period].tolist(), strict=True)
                )
            ]
        )
        ordered: NDArray[np.int64] = drawn[np.lexsort((drawn, self.dataset.rec[drawn]))]
        return ordered

    def arrival(self, device: int, period: int, normalisation: Normalisation) -> Arrival:
        """Make the windows that arrive in a period.

        Each class's windows are drawn without replacement until the person has no more of them,
        then from all again. An absent device sees none.

        Args:
            device: Which device.
            period: Which period.
            normalisation: From source people.
        """
        rows = self.rows(device, period)
        windows = self._sensed(rows, device, period, PAST, normalisation)
        return Arrival(windows.x, windows.y, self.known_at(device, period))

    def held_out(self, device: int, period: int, normalisation: Normalisation) -> LabelledWindows:
        """Make windows to measure a device on in a period; they never arrive.

        They come from the person's future, under the shift, the classes and the class mix of the
        period; of an absent device there are none.

        Args:
            device: Which device.
            period: Which period.
            normalisation: From source people.
        """
        rows = self.rows(device, period, held_out=True)
        return self._sensed(rows, device, period, FUTURE, normalisation)

    def source_dataset(self) -> DataSet:
        """Return what a base is trained on: only the classes of period 0, of all people."""
        return relabelled(self.dataset, self.labels[: self.classes_at(0)])

    def _sensed(
        self, rows: Rows, device: int, period: int, draw: str, normalisation: Normalisation
    ) -> LabelledWindows:
        dataset = self.dataset
        x = apply(
            dataset.physical(rows),
            self._parts(device, period),
            dataset.channels,
            dataset.rate_hz,
            level=self._person(self.person(device)).level,
            seed=self.seed,
            device=self.name(device),
            period=period,
            draw=draw,
        )
        return labelled(dataset, rows, x, normalisation)

    def _parts(self, device: int, period: int) -> tuple[Part, ...]:
        return parts_of([event for event, flags in self._shifts if flags[device]], period)

    def _draw_counts(self, device: int, draw: str) -> Rows:
        """Return windows by period and class, int64 ``[periods, classes]``, none while absent."""
        person, scenario = self._person(self.person(device)), self.scenario
        past = draw == PAST
        counts = counts_of(
            self._habits,
            person.past if past else person.future,
            np.array([len(rows) for rows in person.past], np.float64),
            scenario.windows_per_period if past else scenario.test_windows_per_period,
            self.seed,
            self.name(device),
            draw,
        )
        periods = np.arange(scenario.periods)
        here = (self._members.joined[device] <= periods) & (periods < self._members.left[device])
        none: Rows = counts * here[:, None]
        return none

    def _check(self, device: int, period: int = 0) -> None:
        if not 0 <= device < len(self):
            raise IndexError(f"this fleet has {len(self)} devices; there is no {device}")
        if not 0 <= period < self.scenario.periods:
            raise IndexError(f"there are {self.scenario.periods} periods; there is no {period}")

    def _check_channels(self) -> None:
        """Try every shift on no windows, so that one that does not suit fails here."""
        dataset = self.dataset
        nothing = np.zeros((0, *self.shape), np.float32)
        for event, _ in self._shifts:
            shift = parse(event.shift)
            assert shift is not None, "the event's own validator holds it to a shift"
            shift.apply(nothing, dataset.channels, dataset.rate_hz, seed=0, device="none")
