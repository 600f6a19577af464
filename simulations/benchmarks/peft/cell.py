"""One cell: adapt a base to a person, and judge what would be served on later windows."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fleet.adapt.attach import single_thread
from fleet.adapt.train import predict
from fleet.errors import FleetError, InputError, RoundError
from fleet.har.dataset import DataSet
from fleet.har.normalise import Normalisation
from fleet.har.partition import device_name, pool
from fleet.har.shifts import parse
from fleet.measure.f1 import confusion, macro_f1_present
from fleet.peft.tuner import Tuned
from fleet.peft.tuners import find
from fleet.seeds import generator
from simulations.benchmarks.peft.bases import BaseRecipe, Bases
from simulations.benchmarks.peft.grid import Cell
from simulations.benchmarks.peft.people import cut, data_of

__all__ = ["Outcome", "adapt"]

Windows = tuple[torch.Tensor, torch.Tensor]

CURVE = (0, 5, 10, 20, 30, 40)  # and the last step


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one adaptation came to.

    Args:
        macro_f1: After the last step, over the classes that the person's test windows hold; NaN
            when training diverged.
        curve: (step, macro-F1), from before the first step on.
        trained_parameters: What the optimiser moved.
        total_parameters: Of the network with its batch norms.
        update_bytes: What a device would send.
        merges: Whether a dense network of the base's graph serves it.
        seconds: Wall-clock time of training alone.
        refused: Why the method cannot do this; empty when it can.
    """

    macro_f1: float
    curve: tuple[tuple[int, float], ...]
    trained_parameters: int
    total_parameters: int
    update_bytes: int
    merges: bool
    seconds: float
    refused: str = ""

    def as_record(self) -> dict[str, Any]:
        """Return JSON values; NaN becomes null."""
        return {
            "macro_f1": None if math.isnan(self.macro_f1) else self.macro_f1,
            "curve": [[step, None if math.isnan(f1) else f1] for step, f1 in self.curve],
            "trained_parameters": self.trained_parameters,
            "total_parameters": self.total_parameters,
            "bytes": self.update_bytes,
            "merges": self.merges,
            "train_seconds": self.seconds,
            "refused": self.refused,
        }


def adapt(cell: Cell, bases: Bases, recipe: BaseRecipe, rate: float) -> Outcome:
    """Run one cell at one learning rate; what a method cannot do is an outcome, too."""
    dataset, _ = data_of(cell.data, cell.unseen)
    base = bases.load(recipe)
    total = sum(p.numel() for p in base.network.parameters())
    worn, train, test = _windows(cell, dataset, base.normalisation)
    tuner = find(cell.method)
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    with single_thread():
        try:
            tuned = tuner.attach(bases.start(recipe, cell, worn))
            tuned.calibrate(worn)
            stepper = tuned.optimiser(cell.optimiser, rate) if tuner.trains else None
        except InputError as error:  # what cannot be read or written is no refusal
            return Outcome(math.nan, (), 0, total, 0, False, 0.0, error.message)
        if stepper is not None:
            curve, seconds = _train(cell, tuned, stepper, train, test)
        else:
            curve = [(0, _f1(tuned, *test))]
        trained = sum(p.numel() for p in tuned.trainable().values()) if tuner.trains else 0
        return Outcome(
            curve[-1][1],
            tuple(curve),
            trained,
            total,
            tuned.update_bytes(),
            _merges(tuned),
            seconds,
        )


def _train(
    cell: Cell,
    tuned: Tuned,
    stepper: torch.optim.Optimizer,
    train: Windows,
    test: Windows,
) -> tuple[list[tuple[int, float]], float]:
    x, y = train
    rng = generator(cell.seed, 0, device_name(cell.fold), "bench/batches")
    curve, seconds = [(0, _f1(tuned, *test))], 0.0
    for step, index in enumerate(itertools.islice(_order(len(y), cell.batch, rng), cell.steps), 1):
        begun = time.perf_counter()
        chosen = torch.from_numpy(index)
        stepper.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(tuned.module(x[chosen]), y[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        try:
            stepper.step()
        except RoundError:  # GaLore, whose projector needs a finite gradient
            return [*curve, (step, math.nan)], seconds
        seconds += time.perf_counter() - begun
        if not math.isfinite(float(loss.detach())):
            return [*curve, (step, math.nan)], seconds
        if step in CURVE or step == cell.steps:
            curve.append((step, _f1(tuned, *test)))
    return curve, seconds


def _order(windows: int, batch: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield full batches for ever, each window once per pass; few windows give smaller batches."""
    size = min(batch, windows)
    while True:
        order = rng.permutation(windows).astype(np.int64)
        for start in range(0, windows - size + 1, size):
            yield order[start : start + size]


def _f1(tuned: Tuned, x: torch.Tensor, y: torch.Tensor) -> float:
    try:
        guess = predict(tuned.served(), x)
    except FleetError:  # a merge that is not finite serves nobody
        return math.nan
    truth = y.numpy()
    classes = int(max(guess.max(), truth.max())) + 1
    return macro_f1_present(confusion(truth, guess, classes))


def _merges(tuned: Tuned) -> bool:
    try:
        tuned.merge()
    except FleetError:
        return False
    return True


def _windows(
    cell: Cell, dataset: DataSet, normalisation: Normalisation
) -> tuple[torch.Tensor, Windows, Windows]:
    """Return the training windows without labels, those that have labels, and the test windows."""
    share = cut(dataset, cell.fold, cell.split, cell.seed)
    own = pool(dataset, [cell.fold])
    x = dataset.physical(own)
    shift = parse(cell.shift)
    if shift is not None:
        # All at once: noise drawn for train and test apart would be the same noise twice.
        x = shift.apply(x, dataset.channels, dataset.rate_hz, seed=cell.seed, device=share.name)
    inputs = torch.from_numpy(normalisation.apply(x))
    labels = torch.from_numpy(dataset.y[own].astype(np.int64))

    def of(rows: NDArray[np.int64]) -> Windows:
        place = torch.from_numpy(np.searchsorted(own, rows))
        return inputs[place], labels[place]

    return of(share.train)[0], of(_labelled(dataset, share.train, cell)), of(share.test)


def _labelled(dataset: DataSet, rows: NDArray[np.int64], cell: Cell) -> NDArray[np.int64]:
    """Keep the labelled share of each class, at least one window."""
    if cell.labels >= 1.0:
        return rows
    rng = generator(cell.seed, 0, device_name(cell.fold), "bench/labels")
    kept = []
    for label in np.unique(dataset.y[rows]):
        own = rng.permutation(rows[dataset.y[rows] == label])
        kept.append(own[: max(1, round(len(own) * cell.labels))])
    return np.sort(np.concatenate(kept))
