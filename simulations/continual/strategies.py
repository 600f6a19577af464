"""Strategies by name: what a fleet trains, what devices do beside, and whether they share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.adapt.frames import FrameKind
from fleet.continual.options import ContinualOptions
from fleet.errors import InputError
from fleet.federate.records import problems_of

__all__ = ["STRATEGIES", "Strategy", "strategy", "with_options"]

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
        gate: A new release is served only where it is at most so much worse, in pooled macro-F1 on
            windows that devices set aside, than the one before; None to serve every one.
        rebase_above: The base is made anew, with new frames, where the share of gradient energy
            outside the frames is above this; None for never.
        rebase_rounds: It has to be so in so many rounds in a row.
        rebase_apart: Fewest rounds from one such base to the next.
    """

    name: str
    summary: str
    method: str
    options: ContinualOptions = field(default_factory=lambda: ContinualOptions.parse({}))
    frame: FrameKind | None = None
    shares: bool = True
    gate: float | None = None
    rebase_above: float | None = None
    rebase_rounds: int = 3
    rebase_apart: int = 6


class _ServerOptions(BaseModel):
    """The options of a strategy that are the server's affair, see :class:`Strategy`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gate: float | None = Field(None, ge=0, le=1)
    rebase_above: float | None = Field(None, ge=0, le=1)
    rebase_rounds: int = Field(3, ge=1, le=1000)
    rebase_apart: int = Field(6, ge=1, le=1000)


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
        _made(
            "fedit-lora",
            "LoRA's A and B averaged separately (arXiv:2305.05644), and the head",
            "lora+head",
            frame="random",
        ),
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
            "core+drift",
            "core+replay, but a device takes part only while its drift detector says so",
            "core+head",
            trigger="drift",
            **REPLAY,
        ),
        _made(
            "core-joint",
            "cores and head, each round a sample of all windows so far: joint training of the same "
            "budget, which forgetting is measured against",
            "core+head",
            replay_bytes=2**30,
            replay_encoding="float32",
            replay_mix="uniform",
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


def with_options(one: Strategy, values: Mapping[str, Any]) -> Strategy:
    """Return a strategy with some of its options changed, those of devices and of the server.

    Raises:
        InputError: ``continual-options``, listing every problem at once.
    """
    fields = _ServerOptions.model_fields
    server = {name: getattr(one, name) for name in fields}
    server |= {name: value for name, value in values.items() if name in fields}
    own = {name: value for name, value in values.items() if name not in fields}
    try:
        checked = _ServerOptions.model_validate(server)
    except ValidationError as error:
        raise InputError(
            "continual-options",
            f"the continual options break a rule: {problems_of(error)}",
            "The options and their ranges are in docs/continual.md.",
        ) from error
    options = ContinualOptions.parse(one.options.model_dump() | own)
    return replace(one, options=options, **checked.model_dump())
