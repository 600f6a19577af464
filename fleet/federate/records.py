"""The records that cross the wire: frozen, validated once, every problem reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from fleet.adapt.digest import digest_json
from fleet.federate.compress import Encoding

__all__ = [
    "GUARDS",
    "LARGEST_DISTIL",
    "LARGEST_PULL",
    "WIRE_FORMAT",
    "DeviceStatus",
    "Plan",
    "UpdateHeader",
]

WIRE_FORMAT = 1
LARGEST_COUNT = 2**63 - 1
# A fleet that ran a round each second would take thirty years to get there.
LARGEST_NUMBER = 10**9
LARGEST_PULL, LARGEST_DISTIL = 1e6, 1e3
GUARDS = ("anchor", "ewc", "distil")
Digest = Field(pattern=r"^[0-9a-f]{64}$")


class _Record(BaseModel):
    # A number that is none has no JSON, so a record that held one could not be kept.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Plan(_Record):
    """What the devices of one round are asked to do; immutable, named by its content.

    Args:
        round: Number of the round, from 1.
        base: Digest of the base.
        frame: Digest of the base's frames.
        layout: Digest of the layout of what is trained.
        release: Number of the release that training starts from.
        state: Digest of that release's core state.
        method: What is trained, see ``fleet.peft``.
        rank: Columns of the cores.
        epochs: Passes over the device's training windows.
        batch: Windows per step.
        optimiser: ``sgd`` or ``adam``; its state does not outlive the round.
        learning_rate: Step size.
        momentum: Of SGD.
        seed: Root seed; batch order derives from (seed, round, device, "batches").
        weight_cap: Largest weight of one device in the mean, in windows.
        deadline_s: Seconds that a device has from the push of the plan.
        max_steps: Most optimiser steps; 0 for as many as the epochs have.
        memory_budget: Bytes that a step may hold beyond parameters and optimiser state; 0 for no
            limit. A device's own limit holds as well.
        compression: How updates are packed, see ``fleet.federate.compress``.
        anchor: Strength of L2 to the release, see ``fleet.continual.guards``; 0 for none.
        ewc: Strength of elastic weight consolidation, by what each device has kept of its earlier
            trainings; 0 for none.
        distil: Strength of distillation from the release; 0 for none.
    """

    round: int = Field(ge=1, le=LARGEST_NUMBER)
    base: str = Digest
    frame: str = Digest
    layout: str = Digest
    release: int = Field(ge=0, le=LARGEST_NUMBER)
    state: str = Digest
    method: str
    rank: int = Field(ge=1)
    epochs: int = Field(ge=1, le=1000)
    batch: int = Field(ge=1, le=65536)
    optimiser: Literal["sgd", "adam"]
    learning_rate: float = Field(gt=0, le=100)
    momentum: float = Field(ge=0, lt=1)
    seed: int
    weight_cap: int = Field(ge=1, le=4096)
    deadline_s: float = Field(gt=0)
    max_steps: int = Field(default=0, ge=0, le=LARGEST_NUMBER)
    memory_budget: int = Field(default=0, ge=0, le=LARGEST_COUNT)
    compression: Encoding = "none"
    anchor: float = Field(default=0.0, ge=0, le=LARGEST_PULL)
    ewc: float = Field(default=0.0, ge=0, le=LARGEST_PULL)
    distil: float = Field(default=0.0, ge=0, le=LARGEST_DISTIL)

    @model_serializer(mode="wrap")
    def _without_unset(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A plan without compression or guards keeps the id that it had before there were any.
        fields = _unless_none(whole(self), "compression")
        return {name: value for name, value in fields.items() if name not in GUARDS or value}

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits over all fields; the same plan has the same id."""
        return digest_json(self.model_dump(mode="json"))[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Plan:
        """Return a copy with other values; its id is its own, not the one cached here."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("id", None)
        return copied


class UpdateHeader(_Record):
    """What accompanies the packed array of an update.

    Args:
        format: Version of the wire, :data:`WIRE_FORMAT`.
        plan: Id of the plan that is answered.
        device: Name of the device.
        base: Digest of the base that it trained on.
        frame: Digest of the frames that it trained in.
        layout: Digest of the array's layout.
        examples: Windows trained on.
        steps: Optimiser steps taken.
        loss: Mean training loss, nats.
        encoding: How the array is packed; the plan's ``compression``.
    """

    format: int
    plan: str
    device: str = Field(min_length=1, max_length=128)
    base: str = Digest
    frame: str = Digest
    layout: str = Digest
    examples: int = Field(ge=-LARGEST_COUNT, le=LARGEST_COUNT)  # plausible or not: admission
    steps: int = Field(ge=0, le=LARGEST_COUNT)
    loss: float
    encoding: Encoding = "none"

    @model_serializer(mode="wrap")
    def _without_unset(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _unless_none(whole(self), "encoding")

    def config(self) -> dict[str, str | int | float | bytes | bool]:
        """Return the fields as flat scalars: what ``model_dump`` returns, several times faster."""
        fields = dict(self.__dict__)
        if fields["encoding"] == "none":
            del fields["encoding"]
        return fields


class DeviceStatus(_Record):
    """Answer to ``query.status`` and ``query.release``: who a node is, what it can do and serves.

    Args:
        device: Name of the device; stable, unlike a node id.
        train_windows: Labelled windows it can train on.
        test_windows: Windows it evaluates on.
        reason: Why it cannot take part; empty when it can.
        serves: Digest of the merged kernels that it serves; empty when it serves nothing, as a
            simulated learner.
        release: Number of the release that it serves; -1 for none.
        version: Of its software; empty when it does not say.
        alarms: Of its drift detectors, ever; 0 also where it watches for none.
        alarm_age_s: Seconds since the last one; -1 for none.
    """

    device: str = Field(min_length=1, max_length=128)
    train_windows: int = Field(ge=0)
    test_windows: int = Field(ge=0)
    reason: str = ""
    serves: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    release: int = Field(default=-1, ge=-1, le=LARGEST_COUNT)
    version: str = Field(default="", max_length=64)
    alarms: int = Field(default=0, ge=0, le=LARGEST_COUNT)
    alarm_age_s: int = Field(default=-1, ge=-1, le=LARGEST_COUNT)

    @model_serializer(mode="wrap")
    def _without_unset(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A device that serves nothing sends, byte for byte, what it sent before there was serving,
        # and one without alarms what it sent before anybody watched: an older server takes it.
        left_out = {"serves": "", "release": -1, "version": "", "alarms": 0, "alarm_age_s": -1}
        return {k: v for k, v in whole(self).items() if k not in left_out or v != left_out[k]}

    @property
    def usable(self) -> bool:
        """Whether the device can take part."""
        return not self.reason


def _unless_none(fields: dict[str, Any], name: str) -> dict[str, Any]:
    if fields.get(name) == "none":
        del fields[name]
    return fields


def problems_of(error: Any) -> str:
    """Join a pydantic error's problems into one line."""
    return "; ".join(
        f"{'.'.join(map(str, p['loc'])) or 'record'}: {p['msg']}" for p in error.errors()
    )
