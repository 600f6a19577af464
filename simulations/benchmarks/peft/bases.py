"""Pre-trained bases of the bench, each made once and kept, and what cells start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import single_thread
from fleet.adapt.base import read_bundle, write_bundle
from fleet.adapt.calibrate import capped_ranks, make_frames
from fleet.adapt.fold import fold
from fleet.adapt.frames import LEARNED_KINDS, Frame
from fleet.adapt.learned_frames import Sources, gradient_grams
from fleet.adapt.rank_plan import costs_of, plan_ranks, spectra_of
from fleet.errors import FrameError
from fleet.har.dataset import DataSet
from fleet.har.normalise import Normalisation, fit
from fleet.har.partition import pool
from fleet.har.shifts import Remount
from fleet.models.config import ModelConfig
from fleet.models.grow import grow_head
from fleet.models.pretrain import pretrain
from fleet.models.registry import build
from fleet.peft.ada_bn import calibrate
from fleet.peft.tuner import Start
from fleet.seeds import derive_seed
from simulations.benchmarks.peft.grid import Cell, digest_of
from simulations.benchmarks.peft.people import Teachers, data_of

__all__ = ["BaseRecipe", "Bases", "Pretrained"]

FORMAT = "corefleet.bench-base.1"
CALIBRATION_WINDOWS = 1024
FRAME_PEOPLE = 10  # source people whose gradients or deltas make a learned frame
FRAME_WINDOWS = 64
FRAME_ROTATIONS = 2


@dataclass(frozen=True)
class BaseRecipe:
    """What a base is made of.

    Args:
        teachers: Whose windows.
        model: Backbone.
        windows: Most windows to train on, evenly spaced over all.
        epochs: Passes over them.
    """

    teachers: Teachers
    model: str
    windows: int
    epochs: int

    @property
    def key(self) -> str:
        """Names the base's file."""
        t = self.teachers
        return digest_of([t.data, list(t.people), t.unseen, self.model, self.windows, self.epochs])


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A pre-trained network with its batch norms, and its normalisation."""

    network: nn.Module
    normalisation: Normalisation


class Bases:
    """The bases of one output folder.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Per process; a worker runs the cells of one fold one after the other.
        self._recent = lru_cache(maxsize=4)(self._load)
        self._frames = lru_cache(maxsize=24)(self._make_frames)

    def path(self, recipe: BaseRecipe) -> Path:
        """Return where a base is kept."""
        return self.folder / f"{recipe.key}.safetensors"

    def train(self, recipe: BaseRecipe) -> None:
        """Train a base and keep it."""
        dataset, seen = data_of(recipe.teachers.data, recipe.teachers.unseen)
        x, y, normalisation = _source(dataset, seen, recipe)
        with single_thread():
            network = pretrain(
                _config(dataset, seen, recipe.model), x, y, seed=0, epochs=recipe.epochs
            )
        tensors = {f"weight:{n}": np.array(t.numpy()) for n, t in network.state_dict().items()}
        tensors |= {"mean": normalisation.mean, "std": normalisation.std}
        record = {"format": FORMAT, "model": recipe.model, "data": recipe.teachers.data}
        write_bundle(self.path(recipe), tensors, record)

    def load(self, recipe: BaseRecipe) -> Pretrained:
        """Return a base that has been trained."""
        return self._recent(recipe)

    def _load(self, recipe: BaseRecipe) -> Pretrained:
        dataset, seen = data_of(recipe.teachers.data, recipe.teachers.unseen)
        tensors, _ = read_bundle(self.path(recipe), FORMAT)
        network = build(_config(dataset, seen, recipe.model))
        network.load_state_dict(
            {
                n.removeprefix("weight:"): torch.from_numpy(a)
                for n, a in tensors.items()
                if n.startswith("weight:")
            }
        )
        if seen < len(dataset.labels):
            network = grow_head(network, len(dataset.labels), seed=0)
        return Pretrained(network.eval(), Normalisation(tensors["mean"], tensors["std"]))

    def start(self, recipe: BaseRecipe, cell: Cell, target: torch.Tensor) -> Start:
        """Return what a cell starts from.

        Args:
            recipe: Its base.
            cell: Which frame, rank and statistics.
            target: The person's training windows, for calibrated statistics.
        """
        raw = self.load(recipe).network
        if cell.statistics == "calibrated":
            raw = calibrate(raw, target)
            folded = fold(raw).requires_grad_(False)
            frames = self._new_frames(folded, recipe, cell.frame, cell.rank, cell.scale)
        else:
            folded = fold(raw).requires_grad_(False)
            frames = self._frames(recipe, cell.frame, cell.rank, cell.scale)
        return Start(raw, folded, frames, max(cell.rank, 1), cell.seed)

    def _make_frames(
        self, recipe: BaseRecipe, kind: str, rank: int, scale: str
    ) -> dict[str, Frame]:
        folded = fold(self.load(recipe).network).requires_grad_(False)
        return self._new_frames(folded, recipe, kind, rank, scale)

    def _new_frames(
        self, folded: nn.Module, recipe: BaseRecipe, kind: str, rank: int, scale: str
    ) -> dict[str, Frame]:
        if kind == "-":
            return {}
        dataset, seen = data_of(recipe.teachers.data, recipe.teachers.unseen)
        x, _, normalisation = _source(dataset, seen, recipe)
        windows = torch.from_numpy(x[:: -(-len(x) // CALIBRATION_WINDOWS)])
        kind, _, planned = kind.partition("-")
        sources = None
        if kind in LEARNED_KINDS:
            sources = _frame_sources(dataset, seen, recipe, normalisation)
        with single_thread():
            frame_kind: Any = kind
            frame_scale: Any = scale

            def made(ranks: Mapping[str, int]) -> dict[str, Frame]:
                chosen = _planned_ranks(folded, ranks, sources) if planned else ranks
                return make_frames(
                    folded, frame_kind, chosen, windows, scale=frame_scale, sources=sources
                )

            try:
                # Learning a frame takes a pass over the sources; its spectrum rarely caps a rank.
                return made(capped_ranks(folded, frame_kind, rank))
            except FrameError as error:
                if sources is None or error.code not in ("rank-deficient", "degenerate-spectrum"):
                    raise
                return made(capped_ranks(folded, frame_kind, rank, sources=sources))


def _planned_ranks(
    folded: nn.Module, uniform: Mapping[str, int], sources: Sources | None
) -> Mapping[str, int]:
    """Return planned ranks that weigh as much as uniform ones, from kernels or from gradients."""
    costs = costs_of(folded)
    spectra = spectra_of(folded)
    if sources is not None:
        grams = gradient_grams(folded, list(uniform), sources)
        values = {n: np.sqrt(np.maximum(np.linalg.eigvalsh(g)[::-1], 0)) for n, g in grams.items()}
        spectra = {name: values[name][: len(spectra[name])] for name in uniform}
    budget = sum(costs[name] * rank for name, rank in uniform.items())
    return plan_ranks(spectra, costs, budget).ranks


def _config(dataset: DataSet, classes: int, model: str) -> ModelConfig:
    return ModelConfig(
        name=model, channels=len(dataset.channels), classes=classes, window=dataset.window
    )


def _source(
    dataset: DataSet, seen: int, recipe: BaseRecipe
) -> tuple[NDArray[np.float32], NDArray[np.int64], Normalisation]:
    normalisation = fit(dataset, recipe.teachers.people)
    rows = pool(dataset, recipe.teachers.people)
    rows = rows[dataset.y[rows] < seen]
    rows = rows[:: -(-len(rows) // recipe.windows)]
    x = normalisation.apply(dataset.physical(rows))
    return x, dataset.y[rows].astype(np.int64), normalisation


def _frame_sources(
    dataset: DataSet, seen: int, recipe: BaseRecipe, normalisation: Normalisation
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of source people, each as worn and under rotations of their own."""
    batches = []
    for person in recipe.teachers.people[:: -(-len(recipe.teachers.people) // FRAME_PEOPLE)]:
        rows = pool(dataset, [person])
        rows = rows[dataset.y[rows] < seen]
        if not len(rows):  # all of this person's classes are unseen
            continue
        rows = rows[:: -(-len(rows) // FRAME_WINDOWS)]
        x, y = dataset.physical(rows), torch.from_numpy(dataset.y[rows].astype(np.int64))
        views = [x]
        for turn in range(FRAME_ROTATIONS):
            seed = derive_seed(0, turn, dataset.name, "bench/frames")
            shift = Remount(35.0)
            name = f"{person}/{turn}"
            views.append(shift.apply(x, dataset.channels, dataset.rate_hz, seed=seed, device=name))
        batches += [(torch.from_numpy(normalisation.apply(view)), y) for view in views]
    return batches
