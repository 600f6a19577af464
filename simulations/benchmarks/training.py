"""One training step of every method on one network: bytes saved, peak, total, and time.

Sides, interleaved, on one thread: full fine-tuning (train-mode batch norm, every parameter), cores
on the hand-written backward pass, cores in plain autograd, LoRA, the head alone, and inference of
the folded network. All train with Adam on the same batch.

    saved_bytes     kept from the forward for the backward pass; parameters are not counted
    dynamic_bytes   most that was allocated at once during the step, by the allocator
    total_bytes     that, and parameters, their gradients' owners and the optimiser's state
    step_seconds    median of the timed steps
    resident_bytes  on request, for some sides: see training_resident
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from fleet.adapt.attach import single_thread
from fleet.adapt.lean.memory import dynamic_peak
from fleet.errors import ModelError
from fleet.measure.resident import ALLOCATOR_ENVIRONMENT
from simulations.bench import header
from simulations.benchmarks.training_resident import measure
from simulations.benchmarks.training_sides import (
    SIDES,
    Parts,
    Setting,
    Side,
    batch_of,
    make_side,
    prepare,
)

__all__ = ["Setting", "run"]


def run(setting: Setting, resident: bool = False) -> dict[str, Any]:
    """Measure all sides that the network allows; say of the others why not.

    Args:
        setting: What is measured.
        resident: Whether to measure resident memory too, in processes of its own.
    """
    with single_thread():
        parts = prepare(setting)
        found = measure(setting, parts) if resident else {}
        sides, absent = _sides(setting, parts)
        times = _times(sides, setting.runs)
        methods = {name: _measured(side, times[name]) for name, side in sides.items()}
    for name, figures in methods.items():
        figures |= found.get(name, {})
        figures["ratios"] = _ratios(figures, methods["full"], methods["infer"])
    work = setting.config.model_dump() | {
        "batch": setting.batch,
        "micro_batch": setting.micro_batch,
        "rank": setting.rank,
        "frame": setting.frame,
        "runs": setting.runs,
        "threads": 1,
    }
    extra = {"allocator": dict(ALLOCATOR_ENVIRONMENT)} if resident else {}
    return header() | {"work": work, "methods": methods, "absent": absent} | extra


def _sides(setting: Setting, parts: Parts) -> tuple[dict[str, Side], dict[str, str]]:
    (x, y), sides, absent = batch_of(setting), {}, {}
    for name in SIDES:
        try:
            sides[name] = make_side(name, setting, parts, x, y)
        except ModelError as error:
            absent[name] = error.message
    return sides, absent


def _times(sides: dict[str, Side], runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.step()
    for _ in range(runs):
        for name, side in sides.items():
            start = time.perf_counter()
            side.step()
            times[name].append(time.perf_counter() - start)
    return times


def _measured(side: Side, times: list[float]) -> dict[str, Any]:
    held = sum(t.nbytes for t in (*side.network.parameters(), *side.network.buffers()))
    optimiser = sum(2 * p.nbytes for p in side.trained)  # Adam's two moments
    dynamic = dynamic_peak(side.step)
    return {
        "saved_bytes": side.saved(),
        "dynamic_bytes": dynamic,
        "total_bytes": held + optimiser + dynamic,
        "trained_parameters": sum(p.numel() for p in side.trained),
        "step_seconds": statistics.median(times),
        "step_seconds_lowest": min(times),
        "step_seconds_highest": max(times),
    }


def _ratios(
    figures: dict[str, Any], full: dict[str, Any], infer: dict[str, Any]
) -> dict[str, float | None]:
    ratios = {
        "saved_of_full": _ratio(figures, full, "saved_bytes"),
        "dynamic_of_full": _ratio(figures, full, "dynamic_bytes"),
        "dynamic_of_infer": _ratio(figures, infer, "dynamic_bytes"),
        "total_of_full": _ratio(figures, full, "total_bytes"),
        "step_of_full": _ratio(figures, full, "step_seconds"),
        "step_of_infer": _ratio(figures, infer, "step_seconds"),
    }
    if "resident_bytes" in figures:
        ratios["resident_of_full"] = _ratio(figures, full, "resident_bytes")
        ratios["resident_unset_of_full"] = _ratio(figures, full, "resident_bytes_unset")
    return ratios


def _ratio(figures: dict[str, Any], reference: dict[str, Any], key: str) -> float | None:
    return round(figures[key] / reference[key], 4) if reference[key] else None
