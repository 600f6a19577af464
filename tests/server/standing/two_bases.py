"""A second base for a standing fleet, and devices that lack it until they are sent it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, bytes_of_base
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.continual.growth import grown, rebased
from fleet.federate.releases import base_with
from fleet.federate.wire import BASE_BUNDLE, BASE_MISSING
from server.messages import payload_of
from server.registry.orders import Order
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Fleet


def made_from(base: Base, state: CoreState, rank: int = 2) -> Base:
    """Return the base whose kernels are a release's merged ones, with new frames."""
    network = folded_network(base)
    merged = merge(parameters_of(network), base.frames, state)
    frames = make_frames(with_parameters(network, merged), "svd", rank)
    record = base.record.model_copy(update={"rank": rank})
    return replace(rebased(base, state, frames), record=record)


def more_of(base: Base, *labels: str) -> Base:
    """Return the base with further classes."""
    return grown(base, (*base.record.labels, *labels), seed=0)


def shaken(base: Base) -> Base:
    """Return a base of another network with the same labels and frames."""
    name = next(iter(base.frames))
    arrays = {key: np.array(array) for key, array in base.arrays.items()}
    arrays[f"{name}.weight"] *= 1.5
    return replace(base, arrays=arrays)


def installed(fleet: Fleet, base: Base) -> str:
    """Install a base; return its digest."""
    fleet.registry.bases.install(base.digest, bytes_of_base(base), actor=OPERATOR)
    return base.digest


def second(fleet: Fleet, number: int | None = None, rank: int = 2) -> str:
    """Install the base that is made from the fleet's release; return its digest."""
    found = fleet.registry.releases.current()
    assert found is not None
    release = fleet.registry.releases.load(found.number if number is None else number)
    return installed(fleet, made_from(fleet.base, release.state, rank))


def ordered(fleet: Fleet, base: str, **args: Any) -> Order:
    """Order a rebase."""
    return fleet.registry.orders.place("rebase", {"base": base, **args}, actor=OPERATOR)


def finished(fleet: Fleet, order: Order) -> Order:
    """Let the service work until an order is finished."""
    orders = fleet.registry.orders
    fleet.run(lambda: orders.get(order.id).finished is not None)
    return orders.get(order.id)


def moved(fleet: Fleet, base: str, **args: Any) -> dict[str, Any]:
    """Let the service carry out a rebase; return what came of it."""
    done = finished(fleet, ordered(fleet, base, **args))
    assert done.error == ""
    return dict(done.result)


def declined(message: Message, code: str, detail: str = "release of a base not here") -> Message:
    """Answer that a message cannot be followed."""
    config = ConfigRecord({"format": 1, "declined": code, "detail": detail})
    return Message(RecordDict({"config": config}), reply_to=message)


@dataclass
class Lacking:
    """Devices that have the first base alone, and take another one from a message.

    Attributes:
        holds: Digests of the bases that each has.
        told: Device, release and bytes of the base in each message that tells one to serve.
        deaf: Devices that go on lacking what they are sent.
    """

    fleet: Fleet
    holds: dict[str, set[str]] = field(default_factory=dict)
    told: list[tuple[str, int, int]] = field(default_factory=list)
    deaf: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        devices = self.fleet.devices
        for name in devices.names:
            self.holds[name] = {self.fleet.base.digest}
            devices.answers[name, "release"] = self._answer(name)

    def _answer(self, name: str) -> Any:
        def answer(message: Message, context: Context) -> Message:
            payload = payload_of(message.content)
            content = payload.config.get(BASE_BUNDLE, b"")
            assert isinstance(content, bytes)
            self.told.append((name, int(str(payload.config["release"])), len(content)))
            found = base_with(payload)
            if found is not None and name not in self.deaf:
                self.holds[name].add(found.digest)
            if payload.config["base"] not in self.holds[name]:
                return declined(message, BASE_MISSING)
            return self.fleet.devices._honest("release", name, message, context)

        return answer

    def sent(self, name: str) -> list[tuple[int, bool]]:
        """Return the release of each message to a device, and whether it brought a base."""
        return [(release, size > 0) for device, release, size in self.told if device == name]
