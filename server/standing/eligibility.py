"""Who takes part in a round, and why everybody else does not; pure.

Laws (tests/server/standing/test_eligibility.py): every device is selected or has a reason, never
both; the selection depends on names, policy, round and attempt alone; it is the coordinator's draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from server.coordinator import draw
from server.registry.absences import Absence
from server.registry.records import Device, DeviceState
from server.standing.policy import FleetPolicy

__all__ = ["Absent", "History", "eligible", "other_base"]


class Absent(str, Enum):
    """Why a device was not asked in a round; stable codes for records and metrics."""

    revoked = "revoked"
    quarantined = "quarantined"
    tag = "tag"
    offline = "offline"
    silent = "silent"
    stale = "stale"
    other_base = "other-base"
    no_labels = "no-labels"
    unusable = "unusable"
    byte_budget = "byte-budget"
    not_drawn = "not-drawn"


@dataclass(frozen=True)
class History:
    """What eligibility needs besides the registry's devices.

    Args:
        round: Number of the round.
        attempt: From 1.
        online: Devices whose node is online and may be talked to.
        why_not: Why the node of a device is not talked to, by device.
        silent: What is known of devices that are online and do not answer, by device.
        spent: Bytes that devices moved today.
        cost: Bytes that a round costs a device, expected.
        base: Digest of the base that the round trains on; empty for any.
        bases: Digest of the base of each release, by number.
    """

    round: int
    attempt: int = 1
    online: frozenset[str] = frozenset()
    why_not: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    silent: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    spent: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    cost: int = 0
    base: str = ""
    bases: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))


def eligible(
    policy: FleetPolicy, devices: Iterable[Device], now: float, history: History
) -> tuple[tuple[str, ...], dict[str, Absence]]:
    """Choose the cohort of a round.

    Args:
        policy: What holds.
        devices: All that were ever enrolled.
        now: Seconds since the epoch.
        history: See :class:`History`.

    Returns:
        The cohort, sorted; and each other device with the reason.
    """
    absent: dict[str, Absence] = {}
    able: list[str] = []
    for device in sorted(devices, key=lambda each: each.name):
        found = _absence(policy, device, now, history)
        if found is None:
            able.append(device.name)
        else:
            reason, detail = found
            absent[device.name] = Absence(reason=reason.value, detail=detail)
    chosen = draw(tuple(able), policy.asked, policy.seed, history.round, history.attempt - 1)
    detail = f"{len(chosen)} of {len(able)} drawn"
    for name in set(able) - set(chosen):
        absent[name] = Absence(reason=Absent.not_drawn.value, detail=detail)
    return chosen, dict(sorted(absent.items()))


def _absence(
    policy: FleetPolicy, device: Device, now: float, history: History
) -> tuple[Absent, str] | None:
    status = device.status
    if device.state is DeviceState.revoked:
        return Absent.revoked, device.revoked.why if device.revoked else ""
    if device.state is DeviceState.quarantined:
        return Absent.quarantined, device.quarantined.why if device.quarantined else ""
    if missing := sorted(set(policy.tags) - set(device.tags)):
        return Absent.tag, f"has not the tag {missing[0]}"
    if unwanted := sorted(set(policy.without_tags) & set(device.tags)):
        return Absent.tag, f"has the tag {unwanted[0]}"
    if device.name not in history.online:
        return Absent.offline, history.why_not.get(device.name, _last_seen(device, now))
    if device.name in history.silent:
        return Absent.silent, history.silent[device.name]
    if not status:
        return Absent.silent, "has not said anything yet"
    if policy.stale_after_s and now - (device.seen_at_s or 0.0) > policy.stale_after_s:
        return Absent.stale, _last_seen(device, now)
    if other := other_base(device, history.bases, history.base, "the round"):
        return Absent.other_base, other
    windows = int(status.get("train_windows", 0))
    if windows < policy.min_train_windows:
        return Absent.no_labels, f"{windows} labelled windows, {policy.min_train_windows} needed"
    if status.get("reason"):
        return Absent.unusable, str(status["reason"])
    spent, limit = history.spent.get(device.name, 0), policy.bytes_per_device_day
    if limit and spent + history.cost > limit:
        detail = f"{spent} of {limit} bytes moved today, a round costs about {history.cost}"
        return Absent.byte_budget, detail
    return None


def other_base(device: Device, bases: Mapping[int, str], wanted: str, what: str) -> str:
    """Return how a device serves a release of another base than something is of; empty if not.

    One that serves nothing, or a release that is none of the fleet's, may be asked.

    Args:
        device: Who.
        bases: Digest of the base of each release, by number.
        wanted: Digest of the base of what it would be asked; empty for any.
        what: What that is, in words.
    """
    own = bases.get(device.serves_release, wanted)
    if not wanted or own == wanted:
        return ""
    return (
        f"serves release {device.serves_release} of base {own[:12]}…, "
        f"{what} is of base {wanted[:12]}…"
    )


def _last_seen(device: Device, now: float) -> str:
    if device.seen_at_s is None:
        return "never seen"
    return f"last seen {max(0.0, now - device.seen_at_s):.0f} s ago"
