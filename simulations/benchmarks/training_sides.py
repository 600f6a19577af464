"""The training benchmark's sides: each a network, its optimiser and one step of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fleet.adapt.attach import attach, make_frames
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame, FrameKind
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.lean.plan import accumulate
from fleet.adapt.state import CoreState
from fleet.measure.saved import saved_bytes
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.lora import attach_lora
from fleet.peft.registry import find

__all__ = ["SIDES", "Parts", "Setting", "Side", "batch_of", "make_side", "prepare"]

SIDES = ("full", "core", "core-autograd", "head", "infer", "lora")


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


@dataclass(frozen=True, eq=False)
class Parts:
    """What the sides are made of.

    Args:
        raw: The network with its batch norms.
        folded: The network without them, frozen.
        frames: Frame by layer name.
    """

    raw: nn.Module
    folded: nn.Module
    frames: Mapping[str, Frame]


def batch_of(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the windows and labels of every step."""
    shape = (setting.batch, setting.config.channels, setting.config.window)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(setting.batch) % setting.config.classes


def prepare(setting: Setting) -> Parts:
    """Build the network, fold it and make its frames."""
    raw = build(setting.config, seed=0)
    folded = fold(raw).requires_grad_(False)
    x, _ = batch_of(setting)
    return Parts(raw, folded, make_frames(folded, setting.frame, setting.rank, x))


def make_side(name: str, setting: Setting, parts: Parts, x: torch.Tensor, y: torch.Tensor) -> Side:
    """Make one side, ready to step.

    Raises:
        ModelError: When the network does not allow it.
    """
    folded, frames = parts.folded, parts.frames
    if name == "full":
        return _trained(parts.raw.requires_grad_(True).train(), x, y, setting.batch)
    if name == "infer":
        return _inference(folded, x)
    if name == "lora":
        return _trained(attach_lora(folded, setting.rank), x, y, setting.micro_batch)
    method = "head" if name == "head" else "core"
    state = CoreState.zero(find(method).layout(folded, frames))
    make = attach if name == "core-autograd" else attach_lean
    network = make(folded, frames, state, dtype=torch.float32).module
    return _trained(network, x, y, setting.micro_batch)


def _trained(network: nn.Module, x: torch.Tensor, y: torch.Tensor, windows: int) -> Side:
    trained = tuple(p for p in network.parameters() if p.requires_grad)
    stepper = torch.optim.Adam(trained, lr=1e-4)

    def step() -> None:
        stepper.zero_grad(set_to_none=True)
        accumulate(network, x, y, windows)
        stepper.step()

    def saved() -> int:
        return saved_bytes(network, x[:windows], y[:windows])

    return Side(network, trained, step, saved)


def _inference(network: nn.Module, x: torch.Tensor) -> Side:
    def step() -> None:
        with torch.inference_mode():
            network(x)

    return Side(network, (), step, lambda: 0)
