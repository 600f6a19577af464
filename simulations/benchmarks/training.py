"""One training step of every method on one network: bytes saved, peak, total, and time.

Sides, interleaved, on one thread: full fine-tuning (train-mode batch norm, every parameter), cores
on the hand-written backward pass, cores in plain autograd, LoRA, the head alone, and inference of
the folded network. All train with Adam on the same batch.

    saved_bytes     kept from the forward for the backward pass; parameters are not counted
    dynamic_bytes   most that was allocated at once during the step, by the allocator
    total_bytes     that, and parameters, their gradients' owners and the optimiser's state
    step_seconds    median of the timed steps
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from fleet.adapt.attach import attach, make_frames, single_thread
from fleet.adapt.fold import fold
from fleet.adapt.frames import FrameKind
from fleet.adapt.lean.memory import dynamic_peak
from fleet.adapt.lean.module import LeanNetwork, attach_lean
from fleet.adapt.lean.plan import accumulate
from fleet.adapt.state import CoreState
from fleet.errors import ModelError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.lora import attach_lora
from fleet.peft.registry import find
from simulations.bench import header

__all__ = ["Setting", "run"]


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        config: Network and input.
        batch: Windows per step.
        micro_batch: Windows that run together; the batch for one pass.
        rank: Rank of cores and LoRA.
        frame: Frame of the cores.
        runs: Timed steps of each side.
    """

    config: ModelConfig
    batch: int
    micro_batch: int
    rank: int
    frame: FrameKind
    runs: int


@dataclass(frozen=True, eq=False)
class Side:
    """One method's step.

    Args:
        network: What holds the parameters.
        trained: What the optimiser moves; empty for inference.
        step: One step, optimiser included.
        saved: Runs one forward pass and returns the bytes it keeps.
    """

    network: nn.Module
    trained: tuple[nn.Parameter, ...]
    step: Callable[[], None]
    saved: Callable[[], int]


def run(setting: Setting) -> dict[str, Any]:
    """Measure all sides that the network allows; say of the others why not."""
    with single_thread():
        sides, absent = _sides(setting)
        times = _times(sides, setting.runs)
        methods = {name: _measured(side, times[name]) for name, side in sides.items()}
    for figures in methods.values():
        figures["ratios"] = {
            "saved_of_full": _ratio(figures, methods["full"], "saved_bytes"),
            "dynamic_of_full": _ratio(figures, methods["full"], "dynamic_bytes"),
            "dynamic_of_infer": _ratio(figures, methods["infer"], "dynamic_bytes"),
            "total_of_full": _ratio(figures, methods["full"], "total_bytes"),
            "step_of_full": _ratio(figures, methods["full"], "step_seconds"),
            "step_of_infer": _ratio(figures, methods["infer"], "step_seconds"),
        }
    work = setting.config.model_dump() | {
        "batch": setting.batch,
        "micro_batch": setting.micro_batch,
        "rank": setting.rank,
        "frame": setting.frame,
        "runs": setting.runs,
        "threads": 1,
    }
    return header() | {"work": work, "methods": methods, "absent": absent}


def _sides(setting: Setting) -> tuple[dict[str, Side], dict[str, str]]:
    raw = build(setting.config, seed=0)
    shape = (setting.batch, setting.config.channels, setting.config.window)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(setting.batch) % setting.config.classes
    folded = fold(raw).requires_grad_(False)
    frames = make_frames(folded, setting.frame, setting.rank, x)
    cores = CoreState.zero(find("core").layout(folded, frames))
    heads = CoreState.zero(find("head").layout(folded, frames))
    sides = {
        "full": _trained(raw.train(), x, y, setting.batch),
        "core": _trained(
            attach_lean(folded, frames, cores, dtype=torch.float32).module,
            x,
            y,
            setting.micro_batch,
        ),
        "core-autograd": _trained(
            attach(folded, frames, cores, dtype=torch.float32).module, x, y, setting.micro_batch
        ),
        "head": _trained(
            attach_lean(folded, frames, heads, dtype=torch.float32).module,
            x,
            y,
            setting.micro_batch,
        ),
        "infer": _inference(folded, x),
    }
    absent = {}
    try:
        lora = attach_lora(folded, setting.rank)
        sides["lora"] = _trained(lora, x, y, setting.micro_batch)
    except ModelError as error:
        absent["lora"] = error.message
    return sides, absent


def _trained(network: nn.Module, x: torch.Tensor, y: torch.Tensor, windows: int) -> Side:
    trained = tuple(p for p in network.parameters() if p.requires_grad)
    stepper = torch.optim.Adam(trained, lr=1e-4)

    def step() -> None:
        stepper.zero_grad(set_to_none=True)
        accumulate(network, x, y, windows)
        stepper.step()

    def saved() -> int:
        part, labels = x[:windows], y[:windows]
        if isinstance(network, LeanNetwork):
            functional.cross_entropy(network(part), labels)
            return network.saved_bytes
        with _counting(network) as counted:
            functional.cross_entropy(network(part), labels)
        return sum(counted.values())

    return Side(network, trained, step, saved)


def _inference(network: nn.Module, x: torch.Tensor) -> Side:
    def step() -> None:
        with torch.inference_mode():
            network(x)

    return Side(network, (), step, lambda: 0)


@contextmanager
def _counting(network: nn.Module) -> Iterator[dict[int, int]]:
    """Count the bytes of storages that autograd keeps, each once, the network's own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice while we count

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


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


def _ratio(figures: dict[str, Any], reference: dict[str, Any], key: str) -> float | None:
    return round(figures[key] / reference[key], 4) if reference[key] else None
