"""What a step of each method costs: multiply-accumulates, saved bytes, peak and time.

Measured once per backbone and method, on one thread, interleaved with full fine-tuning of the raw
network in train mode (as published) and with inference of the folded one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import single_thread
from fleet.adapt.calibrate import capped_ranks, make_frames
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame
from fleet.adapt.lean.memory import dynamic_peak
from fleet.errors import FleetError
from fleet.measure.macs import step_macs
from fleet.measure.saved import saved_bytes
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.tuner import Start
from fleet.peft.tuners import find
from simulations.benchmarks.peft.grid import Cell
from simulations.benchmarks.peft.people import data_of

__all__ = ["Variant", "costs_of", "step_seconds", "variants_of"]

LEARNED = ("gradient", "people")


@dataclass(frozen=True)
class Variant:
    """What decides the cost of a step."""

    data: str
    model: str
    method: str
    frame: str
    rank: int
    batch: int
    optimiser: str

    @classmethod
    def of(cls, cell: Cell) -> Variant:
        """Return the variant of a cell."""
        learned = cell.frame.partition("-")[0] in LEARNED
        kind = "random" if learned else cell.frame  # the same form, made for nothing
        return cls(cell.data, cell.model, cell.method, kind, cell.rank, cell.batch, cell.optimiser)


def variants_of(cells: tuple[Cell, ...]) -> dict[Variant, int]:
    """Return the distinct variants and how many steps the cells take of each."""
    found: dict[Variant, int] = {}
    for cell in cells:
        variant = Variant.of(cell)
        found[variant] = found.get(variant, 0) + cell.steps
    return found


@dataclass(frozen=True, eq=False)
class _Step:
    network: nn.Module
    trained: tuple[nn.Parameter, ...]
    run: Callable[[], None]


def step_seconds(variants: list[Variant], runs: int = 2) -> dict[Variant, float]:
    """Return the median time of a training step of each variant; 0 where it cannot be."""
    found: dict[Variant, float] = {}
    with single_thread():
        for variant in variants:
            x, y = _batch(variant)
            try:
                step = _step(variant, x, y)
            except FleetError:
                found[variant] = 0.0
                continue
            step.run()
            found[variant] = statistics.median(_timed(step.run) for _ in range(runs))
    return found


def costs_of(variants: list[Variant], runs: int = 5) -> list[dict[str, Any]]:
    """Measure the variants of one backbone and data shape beside full fine-tuning.

    Args:
        variants: All of one data set, model and batch.
        runs: Timed steps of each side, in turn.
    """
    x, y = _batch(variants[0])
    with single_thread():
        steps, refused = _steps(variants, x, y)
        full, infer = _full(variants[0], x, y), _inference(variants[0], x)
        sides: dict[Variant | str, _Step] = {**steps, "full": full, "infer": infer}
        times: dict[Variant | str, list[float]] = {key: [] for key in sides}
        for side in sides.values():
            side.run()
        for _ in range(runs):
            for key, side in sides.items():
                times[key].append(_timed(side.run))
        reference = _figures(full, x, y, times["full"])
        infer_bytes = dynamic_peak(infer.run)
        rows = []
        for variant in variants:
            row: dict[str, Any] = variant.__dict__ | {"refused": refused.get(variant, "")}
            if variant in steps:
                figures = _figures(steps[variant], x, y, times[variant])
                row |= figures | {
                    "macs_of_full": figures["macs_per_step"] / reference["macs_per_step"],
                    "saved_of_full": figures["saved_bytes"] / reference["saved_bytes"],
                    "dynamic_of_infer": figures["dynamic_bytes"] / infer_bytes,
                    "step_of_full": figures["step_seconds"] / reference["step_seconds"],
                }
            rows.append(row)
    return rows


def _figures(step: _Step, x: torch.Tensor, y: torch.Tensor, times: list[float]) -> dict[str, float]:
    return {
        "macs_per_step": step_macs(step.network, x, y).total,
        "saved_bytes": saved_bytes(step.network, x, y),
        "dynamic_bytes": dynamic_peak(step.run),
        "step_seconds": statistics.median(times),
    }


def _steps(
    variants: list[Variant], x: torch.Tensor, y: torch.Tensor
) -> tuple[dict[Variant | str, _Step], dict[Variant, str]]:
    made: dict[Variant | str, _Step] = {}
    refused = {}
    for variant in variants:
        if not find(variant.method).trains:
            refused[variant] = "takes no gradient step"
            continue
        try:
            made[variant] = _step(variant, x, y)
        except FleetError as error:
            refused[variant] = error.message
    return made, refused


def _step(variant: Variant, x: torch.Tensor, y: torch.Tensor) -> _Step:
    raw = _network(variant)
    folded = fold(raw).requires_grad_(False)
    frames: dict[str, Frame] = {}
    if variant.frame != "-":
        kind: Any = variant.frame.partition("-")[0]  # planned ranks weigh what uniform ones do
        frames = make_frames(folded, kind, capped_ranks(folded, kind, variant.rank), x)
    tuned = find(variant.method).attach(Start(raw, folded, frames, max(variant.rank, 1), 0))
    trained = tuple(tuned.trainable().values())
    stepper = tuned.optimiser("sgd" if variant.optimiser == "sgd" else "adam", 1e-5)
    return _Step(tuned.module, trained, _work(tuned.module, stepper, x, y))


def _full(variant: Variant, x: torch.Tensor, y: torch.Tensor) -> _Step:
    network = _network(variant).train()
    trained = tuple(network.parameters())
    return _Step(network, trained, _work(network, torch.optim.Adam(trained, lr=1e-5), x, y))


def _inference(variant: Variant, x: torch.Tensor) -> _Step:
    network = fold(_network(variant)).requires_grad_(False)

    def run() -> None:
        with torch.inference_mode():
            network(x)

    return _Step(network, (), run)


def _work(
    network: nn.Module, stepper: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    def run() -> None:
        stepper.zero_grad(set_to_none=True)
        functional.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        stepper.step()

    return run


def _network(variant: Variant) -> nn.Module:
    dataset, classes = data_of(variant.data)
    config = ModelConfig(
        name=variant.model,
        channels=len(dataset.channels),
        classes=classes,
        window=dataset.window,
    )
    return build(config).eval()


def _batch(variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
    dataset, classes = data_of(variant.data)
    shape = (variant.batch, len(dataset.channels), dataset.window)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(variant.batch) % classes


def _timed(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
