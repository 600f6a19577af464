"""Rehearsal: a small federated run on held-out source people that chooses a learning rate.

A third of the source people play the fleet, a base trained on the others is adapted at every
candidate rate, and the best pooled macro-F1 wins. Nothing of the real fleet is looked at: neither
its people nor its shift, which is drawn anew. Rounds run without messages, on the functions that
devices and server use.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fleet.adapt.attach import single_thread
from fleet.adapt.base import Base
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.adapt.train import batches, predict, train
from fleet.config import RunConfig
from fleet.errors import MismatchError, RoundError
from fleet.federate.aggregate import PartialSum, dequantise, quantise
from fleet.har.partition import device_name
from fleet.har.population import LabelledWindows, Population, share_windows
from fleet.measure.f1 import confusion, macro_f1
from fleet.peft.method import Method
from fleet.seeds import derive_seed, generator
from server.prepare import normalisation_of, train_base

__all__ = ["Rehearsal", "rehearsal_base"]

ROUNDS = 4
LARGEST_REHEARSAL_FLEET = 6
SMALLEST_SOURCE = 3  # with fewer people nobody can be held out

OnCell = Callable[[str, float, float], None]


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A base and the source people who play its fleet.

    Args:
        base: Trained on the other source people.
        devices: Name, past and future windows of each.
    """

    base: Base
    devices: tuple[tuple[str, LabelledWindows, LabelledWindows], ...]

    def choose(
        self, config: RunConfig, method: Method, *, federated: bool = True, on_cell: OnCell
    ) -> float:
        """Return the rate with the best pooled macro-F1, the smaller one of equals.

        Args:
            config: Epochs, batch and seed of local training.
            method: What is trained, and its ladder of rates. Tried are the default and its
                neighbours, then on in the better direction while it gets better.
            federated: False lets each device learn alone.
            on_cell: Called with the method's name, the rate and its score (NaN: diverged).
        """
        scores: dict[float, float] = {}

        def score(rate: float) -> float:
            if rate not in scores:
                with single_thread():
                    scores[rate] = self._score(config, method, rate, federated)
                on_cell(method.name, rate, scores[rate])
            return -math.inf if math.isnan(scores[rate]) else scores[rate]

        _climb(method.rates, method.default_rate, score)
        usable = {rate: score for rate, score in scores.items() if not math.isnan(score)}
        if not usable:
            raise RoundError(
                "no-rate", f"{method.name} diverged at every rate of {method.rates}", ""
            )
        return max(usable, key=lambda rate: (usable[rate], -rate))

    def _score(self, config: RunConfig, method: Method, rate: float, federated: bool) -> float:
        """Return the mean pooled macro-F1 after the last two rounds."""
        network = folded_network(self.base)
        layout = method.layout(network, self.base.frames)
        states = [CoreState.zero(layout)] * len(self.devices)
        scores = []
        try:
            for number in range(1, ROUNDS + 1):
                moved = [
                    _local(self.base, network, state, device, config, method, rate, number)
                    for state, device in zip(states, self.devices, strict=True)
                ]
                states = _averaged(states[0], moved, self.devices) if federated else moved
                if number > ROUNDS - 2:
                    scores.append(_pooled(self.base, network, states, self.devices))
        except (RoundError, MismatchError):  # diverged, or beyond what a round admits
            return math.nan
        return float(np.mean(scores))


def rehearsal_base(config: RunConfig, population: Population) -> Rehearsal | None:
    """Train the rehearsal's base; None when there are too few source people to hold any out."""
    people = population.source
    if len(people) < SMALLEST_SOURCE:
        return None
    rng = generator(config.seed, 0, "server", "rehearsal/people")
    held = min(LARGEST_REHEARSAL_FLEET, max(1, len(people) // 3))
    shuffled = [people[i] for i in rng.permutation(len(people))]
    players, teachers = sorted(shuffled[:held]), tuple(sorted(shuffled[held:]))
    epochs = max(1, config.base_epochs // 2)
    base = train_base(config, population, teachers, epochs=epochs, purpose="rehearsal")
    seed = derive_seed(config.seed, 0, "server", "rehearsal/shift")
    devices = []
    for person in players:
        _, past, future = share_windows(
            population,
            person,
            normalisation_of(base),
            train_fraction=config.train_fraction,
            seed=seed,
        )
        if len(past.y) and len(future.y):
            devices.append((device_name(person), past, future))
    return Rehearsal(base, tuple(devices)) if devices else None


def _climb(ladder: tuple[float, ...], start: float, score: Callable[[float], float]) -> None:
    """Score rates around ``start`` until the best one has a scored neighbour on either side."""
    best = ladder.index(start)
    while True:
        around = [i for i in (best - 1, best, best + 1) if 0 <= i < len(ladder)]
        top = max(around, key=lambda i: score(ladder[i]))
        if top == best:
            return
        best = top


Device = tuple[str, LabelledWindows, LabelledWindows]


def _local(
    base: Base,
    network: torch.nn.Module,
    state: CoreState,
    device: Device,
    config: RunConfig,
    method: Method,
    rate: float,
    number: int,
) -> CoreState:
    name, past, _ = device
    attached = method.attach(network, base.frames, state, dtype=torch.float32)
    rng = generator(config.seed, number, name, "rehearsal/batches")
    order = batches(len(past.y), batch=config.batch, epochs=config.epochs, generator=rng)
    x, y = torch.from_numpy(past.x), torch.from_numpy(past.y)
    train(attached, x, y, order, optimiser=method.optimiser, learning_rate=rate)
    return attached.state()


def _averaged(
    before: CoreState, moved: list[CoreState], devices: tuple[Device, ...]
) -> list[CoreState]:
    total = PartialSum.empty(before.layout.size)
    for state, (_, past, _) in zip(moved, devices, strict=True):
        total = total.add(quantise((state - before).flat()), min(len(past.y), 4096))
    mean = before.flat().astype(np.float64) + dequantise(total.mean())
    return [CoreState.from_flat(before.layout, mean.astype(np.float32))] * len(moved)


def _pooled(
    base: Base,
    network: torch.nn.Module,
    states: list[CoreState],
    devices: tuple[Device, ...],
) -> float:
    classes = len(base.record.labels)
    counts = np.zeros((classes, classes), np.int64)
    served: tuple[CoreState | None, torch.nn.Module] = (None, network)
    for state, (_, _, future) in zip(states, devices, strict=True):
        if served[0] is not state:
            merged = merge(parameters_of(network), base.frames, state)
            served = (state, with_parameters(copy.deepcopy(network), merged))
        counts += confusion(future.y, predict(served[1], torch.from_numpy(future.x)), classes)
    return macro_f1(counts)
