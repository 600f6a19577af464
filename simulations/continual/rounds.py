"""One round of a continual run: the coordinator's own, with the transport left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet.errors import RoundError
from fleet.federate.records import Plan
from fleet.federate.releases import Release
from fleet.federate.wire import Payload, encode_plan
from server import coordinator as c
from server.messages import Traffic
from simulations.cohort.fleet import CohortFleet

__all__ = ["Outcome", "run_round"]


@dataclass(frozen=True)
class Outcome:
    """What a round came to.

    Args:
        plan: What devices were asked.
        record: The coordinator's record.
        release: The new release; None where the round was abandoned.
        traffic: Packed arrays of the answers. Plans carry the release that the round starts from,
            which devices hold: the driver counts a release when it brings a device to it.
    """

    plan: Plan
    record: c.RoundRecord
    release: Release | None
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def learned_from(self) -> list[str]:
        """Devices whose updates are in the release; none where there is no release."""
        return [str(one["device"]) for one in self.record.accepted] if self.release else []


def run_round(start: c.State, devices: Mapping[str, int], fleet: CohortFleet) -> Outcome:
    """Run a round of devices that are all there.

    Args:
        start: The coordinator's idle state before it.
        devices: Partition of each device, by name; one or more.
        fleet: What answers.

    Raises:
        RoundError: ``no-round`` when the coordinator opens none.
    """
    state, effects = c.step(start, c.Fleet(0.0, tuple(sorted(devices))))
    if not effects or not isinstance(effects[0], c.Push):
        raise RoundError("no-round", f"{len(devices)} devices are too few for a round", "")
    push, traffic = effects[0], Traffic()
    payload = encode_plan(push.plan, push.release.state)
    state, _ = c.step(state, c.Pushed(0.0))
    answers = fleet.train(payload, [devices[name] for name in push.devices])
    events = [
        _event(name, answer, traffic) for name, answer in zip(push.devices, answers, strict=True)
    ]
    traffic.messages_down = len(push.devices)
    _, effects = c.step_all(state, events)
    published = next(each for each in effects if isinstance(each, c.Publish))
    return Outcome(push.plan, published.record, published.release, traffic)


def _event(device: str, answer: Payload | Exception, traffic: Traffic) -> c.Event:
    if isinstance(answer, Exception):
        return c.Failed(0.0, device, str(answer))
    traffic.messages_up += 1
    traffic.bytes_up += answer.array.nbytes
    return c.Answered(0.0, device, answer)
