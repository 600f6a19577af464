"""Strategies by name: what a fleet trains, what devices do beside, and whether they share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fleet.adapt.frames import FrameKind
from fleet.continual.options import ContinualOptions
from fleet.errors import InputError

__all__ = ["STRATEGIES", "Strategy", "strategy"]

REPLAY: dict[str, Any] = {"replay_bytes": 256 * 1024}


@dataclass(frozen=True)
class Strategy:
    """One way for a fleet to go on learning.

    Args:
        name: In flags and tables.
        summary: One line for people.
        method: What is trained, see ``fleet.peft``; empty for nothing.
        options: What devices do beside plain training.
        frame: Kind of the base's frames; None for the run's.
        shares: Whether devices send what they learn.
    """

    name: str
    summary: str
    method: str
    options: ContinualOptions = field(default_factory=lambda: ContinualOptions.parse({}))
    frame: FrameKind | None = None
    shares: bool = True


def _made(
    name: str,
    summary: str,
    method: str,
    *,
    frame: FrameKind | None = None,
    shares: bool = True,
    **options: object,
) -> Strategy:
    return Strategy(name, summary, method, ContinualOptions.parse(options), frame, shares)


STRATEGIES: dict[str, Strategy] = {
    each.name: each
    for each in (
        _made("frozen", "the base as it was at the start", ""),
        _made("local-full", "each device alone, all weights", "full", shares=False),
        _made("fedavg-full", "all weights averaged (arXiv:1602.05629)", "full"),
        _made("fedprox-full", "FedAvg with a proximal term (arXiv:1812.06127)", "full", anchor=0.1),
        _made("fedavg-head", "the head averaged", "head"),
        _made("fedit-lora", "LoRA's A and B averaged separately (arXiv:2305.05644)", "lora"),
        _made("ffa-lora", "LoRA with A frozen (arXiv:2403.12313)", "core+head", frame="random"),
        _made("core", "cores and head", "core+head"),
        _made("core+replay", "cores and head, replay", "core+head", **REPLAY),
        _made(
            "core+replay+personal",
            "cores and head, replay, a private core on top",
            "core+head",
            personal=True,
            **REPLAY,
        ),
        _made(
            "core+all",
            "cores and head, replay, private core, own statistics, guards, pseudo-labels",
            "core+head",
            personal=True,
            calibrate="adabn",
            ewc=1.0,
            distil=0.0,
            pseudo=1.0,
            **REPLAY,
        ),
        _made(
            "core-joint",
            "cores and head on all windows so far: what forgetting is measured against",
            "core+head",
            replay_bytes=2**30,
            replay_encoding="float32",
        ),
    )
}


def strategy(name: str) -> Strategy:
    """Return the strategy of a name.

    Raises:
        InputError: ``unknown-strategy``.
    """
    if name not in STRATEGIES:
        raise InputError(
            "unknown-strategy",
            f"there is no strategy {name!r}; known: {', '.join(STRATEGIES)}",
            "docs/continual.md says what each does.",
        )
    return STRATEGIES[name]
