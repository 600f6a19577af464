"""A fleet in a registry, its control API on loopback, and certificates for its operators."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fleet.federate.admission import Reason
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release
from fleet.federate.signing import make_key, public_of
from fleet.supervise.record import RunRecord
from server.control import requests as r
from server.control.certificates import identity_of, issue
from server.control.errors import AccessError
from server.control.local import LocalVerbs
from server.control.operators import Operators
from server.control.remote import RemoteVerbs, Trust
from server.control.roles import Role
from server.control.seam import Answer
from server.control.service import serve
from server.control.table import verb_of
from server.control.verbs.fleet import Fleet
from server.registry import Registry
from server.registry.records import RefusalRow
from server.service.authority import Pair, expiry_of, make_authority, sign_server
from tests.server.registry.filled import (
    COORDINATOR,
    FIRST,
    OPERATOR,
    Clock,
    aggregate,
    answer,
    filled,
    opened,
    run_round,
)

# TLS looks at the real clock.
NOW = datetime.now(timezone.utc)
AUTHORITY = make_authority(NOW)
SERVER = sign_server(AUTHORITY, (), NOW)
STRANGER = make_authority(NOW)
SIGNING = make_key()


def trust(role: Role | None, name: str = "anna", authority: Pair = AUTHORITY) -> Trust:
    own = SERVER if role is None else issue(authority, name, role, NOW)
    return Trust(own, AUTHORITY.certificate)


@dataclass
class Doors:
    """The transport's keys, kept in memory."""

    inside: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    away: Exception | None = None

    def links(self) -> dict[str, str]:
        self.check("", "")
        return dict.fromkeys(self.inside, "online")

    def check(self, public_key: str, device: str) -> None:
        if self.away is not None:
            raise self.away

    def enroll(self, public_key: str, device: str) -> str:
        self.check(public_key, device)
        self.inside[device] = public_key
        return f"node of {device}"

    def revoke(self, public_key: str, device: str) -> None:
        self.check(public_key, device)
        self.inside.pop(device, None)
        self.refused.add(public_key)


def status(device: str, release: int) -> DeviceStatus:
    return DeviceStatus(
        device=device, train_windows=40, test_windows=10, release=release, version="0.1.0"
    )


def lived_in(registry: Registry, clock: Clock) -> list[Release]:
    """Fill a registry: three devices, two rounds, three releases; the fleet is on the last.

    In round 2 ada and bob answered, and cyd's update was refused.
    """
    filled(registry)
    registry.devices.tag("ada", add=["kitchen"], actor=OPERATOR)
    clock.now_s += 60
    one = run_round(registry)
    clock.now_s += 60
    plan = opened(registry, one, 2)
    clock.now_s += 5
    updates = [answer(plan, device) for device in ("ada", "bob")]
    for admitted, payload in updates:
        registry.rounds.accept(2, admitted, payload, actor=COORDINATOR)
    refusal = RefusalRow(
        device="cyd", reason=Reason.not_finite, detail="2 entries are none", at_s=clock.now_s
    )
    registry.rounds.refuse(2, refusal, actor=COORDINATOR)
    two = aggregate(one, plan, [admitted for admitted, _ in updates], 2)
    registry.rounds.release(2, two, traffic={"bytes_up": 1280}, actor=COORDINATOR)
    registry.devices.seen(status("ada", 2))
    registry.devices.seen(status("bob", 1))
    return [FIRST, one, two]


def fleet_of(registry: Registry, clock: Clock, folder: Path) -> Fleet:
    return Fleet(
        registry=registry,
        clock=clock,
        nodes=Doors(),
        release_public=public_of(SIGNING),
        backups=folder / "backups",
    )


def known(fleet: Fleet, own: Trust) -> Trust:
    """Write an operator's certificate down, as ``fleet operator issue`` does."""
    with suppress(AccessError):  # a server's own is no operator's
        who = identity_of(own.own.certificate, NOW)
        expires_s = expiry_of(own.own.certificate).timestamp()
        Operators(fleet.registry, fleet.clock).issued(who, expires_s, actor=OPERATOR)
    return own


@contextmanager
def remote(fleet: Fleet, own: Trust) -> Iterator[RemoteVerbs]:
    """Serve a fleet on loopback and ask it as an operator."""
    with (
        serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate) as server,
        RemoteVerbs(f"127.0.0.1:{server.port}", known(fleet, own), wait=lambda _: None) as verbs,
    ):
        yield verbs


def local(fleet: Fleet, actor: str = "anna") -> LocalVerbs:
    return LocalVerbs(fleet, actor)


class Held:
    """A verb that takes until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, fleet: Fleet, actor: str, asked: object) -> Answer:
        self.began.set()
        assert self.go_on.wait(30)
        return Answer({})


def ask(fleet: Fleet, request: r.Request) -> dict[str, Any]:
    return dict(verb_of(request).run(fleet, "anna", request).data)


def ended_at(at_s: float) -> RunRecord:
    """A server that was ended."""
    ended = datetime.fromtimestamp(at_s, timezone.utc)
    return RunRecord(pid=1, ticks=1, since=ended, ended=ended, why="SIGINT")


def beats(fleet: Fleet) -> None:
    """Have the standing service say now that it lives."""
    now = fleet.clock()
    fleet.registry.observations.beat(pid=5, version="", started_at_s=now, doing={})


def doors(fleet: Fleet) -> Doors:
    assert isinstance(fleet.nodes, Doors)
    return fleet.nodes
