"""The run configuration: one frozen record behind ``fleet simulate`` and ``flwr run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fleet.adapt.frames import FrameKind
from fleet.errors import InputError
from fleet.federate.compress import Encoding
from fleet.federate.records import problems_of
from fleet.federate.rule import MEAN, read_rule

__all__ = ["RunConfig"]


WAIT_S = 120.0
# The fleet of a night may be too few devices on one night, hardly on two.
WAIT_WITH_TRACE_S = 2 * 86_400.0


class RunConfig(BaseModel):
    """Everything that decides the outcome of a run, and where it is written.

    Flower spells the keys in kebab-case (``learning-rate``); 0 and ``""`` stand for "decide for
    me".

    Args:
        data: Data set: a name, a path of a canonical ``.npz``, or ``""`` for HAPT where it is found
            and the built-in synthetic fleet where not.
        classes: ``basic`` (the basic activities where a set names them) or ``all``.
        model: Backbone, see ``fleet.models.registry``.
        method: What is trained: ``core``, ``bias``, ``head``, ``full`` or ``lora``, or two of them
            joined by ``+``.
        frame: ``svd``, ``tt``, ``random``, ``gradient`` or ``people``.
        rank: Columns of each core.
        rounds: Rounds to run.
        seed: Root of every random choice.
        shift: How the fleet's sensors differ from the source's: ``none``, ``remount:DEGREES``,
            ``gain:PERCENT``, ``rate:PERCENT``, ``noise:PERCENT``, ``placement:DEGREES``, or several
            joined by ``+``; see ``fleet.har.shifts``.
        fleet_fraction: Share of the people that form the fleet; the others are source people.
        train_fraction: Share of a person's windows, in time order, that devices train on.
        devices: Virtual devices made of the fleet's people; 0 for one of each person.
        windows_per_device: Most windows that a device trains on, and as many that it is tested on;
            0 for all of its person.
        class_mix: Concentration of the Dirichlet distribution of a device's classes about its
            person's; 0 leaves them as the person has them.
        variation: How each device's sensor differs from the others', in the forms of ``shift``.
        epochs: Passes over a device's windows per round.
        max_steps: Most optimiser steps of a device per round; 0 for as many as the epochs have.
        batch: Windows per step.
        learning_rate: Step size; 0 lets a rehearsal on source people choose.
        memory_budget: Bytes that a training step may hold beyond parameters and optimiser state;
            0 for no limit. Results change in the last bits only, so digests do.
        compression: How updates are packed: ``none``, ``int8`` or ``int4``; devices add what that
            loses to their next update.
        base: Path of a base to start from; ``""`` trains one on the source people.
        base_epochs: Passes over the source people's windows when a base is trained.
        trace: When devices are online and how fast they are: the name or file of a trace, see
            ``simulations.traces``; ``""`` for devices that are always there and take no time.
        target_f1: Pooled macro-F1 whose simulated hours a run with a trace reports; 0 for none.
        min_devices: Devices that must be online before a round opens; 0 for all of the fleet, with
            a trace a tenth of it.
        cohort: Devices per round; 0 for all.
        quorum: Accepted updates that a round needs; 0 for half of the cohort.
        deadline_s: Seconds from the push of a plan to the close of its round.
        wait_s: Seconds to wait for enough devices before giving up; 0: two minutes, and two days
            with a trace, whose devices sleep.
        weight_cap: Largest weight of one device, in windows.
        rule: How updates are aggregated: ``mean``, ``clip:NORM``, ``momentum:BETA``, ``adam:RATE``,
            ``yogi:RATE``, ``median``, ``trimmed:BETA``, ``krum:F`` or ``multikrum:F``; see
            ``fleet.federate.rule``.
        evaluate_every: Rounds between evaluations; the first and last are always evaluated.
        evaluate_devices: Devices that are evaluated, the same at every evaluation while they are
            online; 0 for all.
        out: Folder of the results.
        registry: Path or URL of a registry: the run is the fleet's standing service and goes by the
            policy there, not by these values; ``""`` for one run that ends.
        release_key: Path of the key that signs releases for the devices; ``""`` for none.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )

    data: str = ""
    classes: Literal["basic", "all"] = "basic"
    model: str = "small-cnn"
    method: str = "core"
    frame: FrameKind = "svd"
    rank: int = Field(4, ge=1)
    rounds: int = Field(8, ge=1, le=100_000)
    seed: int = Field(0, ge=0)
    shift: str = "remount:35"
    fleet_fraction: float = Field(0.5, gt=0, lt=1)
    train_fraction: float = Field(0.6, gt=0, lt=1)
    devices: int = Field(0, ge=0, le=100_000)
    windows_per_device: int = Field(0, ge=0)
    class_mix: float = Field(0.0, ge=0, le=1e6)
    variation: str = "none"
    epochs: int = Field(1, ge=1, le=1000)
    max_steps: int = Field(0, ge=0)
    batch: int = Field(32, ge=1, le=65536)
    learning_rate: float = Field(0.0, ge=0, le=100)
    memory_budget: int = Field(0, ge=0)
    compression: Encoding = "none"
    base: str = ""
    base_epochs: int = Field(12, ge=1, le=10_000)
    trace: str = ""
    target_f1: float = Field(0.0, ge=0, le=1)
    min_devices: int = Field(0, ge=0)
    cohort: int = Field(0, ge=0)
    quorum: int = Field(0, ge=0)
    deadline_s: float = Field(600.0, gt=0)
    wait_s: float = Field(0.0, ge=0)
    weight_cap: int = Field(4096, ge=1, le=4096)
    rule: str = MEAN.text
    evaluate_every: int = Field(1, ge=1)
    evaluate_devices: int = Field(0, ge=0)
    out: str = "runs/flwr"
    registry: str = ""
    release_key: str = ""

    @field_validator("rule")
    @classmethod
    def _spelt_alike(cls, text: str) -> str:
        try:
            return read_rule(text).text
        except InputError as error:
            raise ValueError(error.message) from error

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> RunConfig:
        """Validate values under either spelling of the keys.

        Raises:
            InputError: ``run-config``, listing every problem at once.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError(
                "run-config",
                f"the run configuration breaks a rule: {problems_of(error)}",
                "The keys and their ranges are listed in docs/run-config.md.",
            ) from error

    @property
    def patience_s(self) -> float:
        """Seconds to wait for enough devices before giving up."""
        return self.wait_s or (WAIT_WITH_TRACE_S if self.trace else WAIT_S)

    def for_flower(self) -> dict[str, bool | int | float | str]:
        """Return the values as Flower's run config spells them."""
        return self.model_dump(mode="json", by_alias=True)
