"""What the registry says: frozen records, the same for every database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fleet.federate.admission import Reason
from fleet.federate.records import Plan
from fleet.federate.wire import Payload

__all__ = [
    "AuditRow",
    "BaseRow",
    "Deed",
    "Device",
    "DeviceState",
    "OpenRound",
    "Record",
    "RefusalRow",
    "ReleaseRow",
    "RoundRow",
    "RoundState",
    "UpdateRow",
]


class Record(BaseModel):
    """A frozen record of the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Deed(Record):
    """That something was done.

    Args:
        at_s: When, seconds since the epoch.
        by: Who.
        why: The reason that was given; may be empty.
    """

    at_s: float
    by: str
    why: str = ""


class DeviceState(str, Enum):
    """What a device may do: everything, talk but not train, nothing."""

    enrolled = "enrolled"
    quarantined = "quarantined"
    revoked = "revoked"


class Device(Record):
    """One enrolled edge machine.

    Args:
        name: Stable; at most 128 characters.
        state: What it may do now.
        public_key: OpenSSH line, as enrolled.
        fingerprint: SHA-256 of the key's bytes, 64 hexadecimal digits.
        tags: Sorted.
        enrolled: When its present key was enrolled.
        quarantined: The quarantine that holds; None when none does.
        revoked: The revocation that holds; None when none does.
        seen_at_s: When it was heard of last, seconds since the epoch.
        status: What it said of itself then.
        serves: Digest of the merged kernels that it said it serves; empty for none.
        serves_release: Number of the release that it said it serves; -1 for none.
        pinned: Number of the release that it stays on; None to follow the fleet.
    """

    name: str
    state: DeviceState
    public_key: str
    fingerprint: str
    tags: tuple[str, ...] = ()
    enrolled: Deed
    quarantined: Deed | None = None
    revoked: Deed | None = None
    seen_at_s: float | None = None
    status: Mapping[str, Any] = Field(default_factory=dict)
    serves: str = ""
    serves_release: int = -1
    pinned: int | None = None


class BaseRow(Record):
    """A base that is installed; its bytes are in the registry or in a file beside it.

    Args:
        digest: Digest of the base.
        size: Bytes of its bundle.
        path: The file; None when the registry holds the bytes.
        installed: When and by whom.
    """

    digest: str
    size: int
    path: str | None
    installed: Deed


class ReleaseRow(Record):
    """A release without its core state, which ``releases.load`` returns.

    Args:
        number: 0 is the base itself.
        digest: The release's name.
        parent: Digest of the release it was made from; empty for number 0.
        base: Digest of its base.
        frame: Digest of the base's frames.
        method: What was trained.
        state_digest: Digest of its core state.
        provenance: How it came about.
        signature: Signature of the digest, hexadecimal; empty where there is none.
        created: When and by whom.
        promoted: When the fleet was last moved to it; None when it never was.
        withdrawn: Why no device may be moved to it any more.
    """

    number: int
    digest: str
    parent: str
    base: str
    frame: str
    method: str
    state_digest: str
    provenance: Mapping[str, Any]
    signature: str = ""
    created: Deed
    promoted: Deed | None = None
    withdrawn: Deed | None = None


class RoundState(str, Enum):
    """Where a round stands in the registry."""

    open = "open"
    released = "released"
    abandoned = "abandoned"


class RoundRow(Record):
    """One attempt of a round.

    Args:
        round: From 1.
        attempt: From 1; a round that was abandoned is tried again.
        plan: What its devices were asked.
        selected: Its cohort, sorted.
        rule: How its updates are aggregated, and the rule's parameters.
        state: Where it stands.
        opened: When and by whom.
        deadline_at_s: When it has to be closed, seconds since the epoch.
        closed: When and by whom; None while it is open.
        release: Number of the release that it made; None without one.
        traffic: Bytes and messages both ways, as the coordinator counted them.
    """

    round: int
    attempt: int
    plan: Plan
    selected: tuple[str, ...]
    rule: Mapping[str, Any]
    state: RoundState
    opened: Deed
    deadline_at_s: float
    closed: Deed | None = None
    release: int | None = None
    traffic: Mapping[str, Any] = Field(default_factory=dict)


class RefusalRow(Record):
    """A device without an update in a round, and why.

    Args:
        device: Who.
        reason: Why, a stable code.
        detail: More, for people.
        at_s: When, seconds since the epoch.
        earlier: It answered the plan of an earlier round; it may still answer this one's.
    """

    device: str
    reason: Reason
    detail: str
    at_s: float
    earlier: bool = False


@dataclass(frozen=True, eq=False)
class UpdateRow:
    """An accepted update, as it came.

    Args:
        device: Who sent it.
        payload: What it sent: packed array and header.
        digest: Digest of the delta as sent.
        weight: Its weight in the mean, windows.
        norm: Euclidean norm of the delta as sent.
        arrived_at_s: When it was kept, seconds since the epoch.
    """

    device: str
    payload: Payload
    digest: str
    weight: int
    norm: float
    arrived_at_s: float


@dataclass(frozen=True, eq=False)
class OpenRound:
    """What a coordinator that starts again needs of the round that was cut off.

    Args:
        row: Plan, cohort, rule, when it was opened and when it is due.
        updates: What was accepted so far, by device.
        refusals: What was refused so far, in order.
        unanswered: Devices of the cohort that have not answered; they are asked again.
    """

    row: RoundRow
    updates: tuple[UpdateRow, ...] = ()
    refusals: tuple[RefusalRow, ...] = ()
    unanswered: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        heard = {one.device for one in self.updates}
        heard |= {one.device for one in self.refusals if not one.earlier}
        left = tuple(device for device in self.row.selected if device not in heard)
        object.__setattr__(self, "unanswered", left)


class AuditRow(Record):
    """One line of the audit.

    Args:
        seq: From 1, without gaps.
        at_s: When, seconds since the epoch.
        actor: Who.
        verb: What was done, e.g. ``device.revoke``.
        subject: To what, e.g. ``person-07``.
        detail: What was asked and what came of it.
        previous: Hash of the row before; 64 zeros for the first.
        hash: SHA-256 over all other fields.
    """

    seq: int
    at_s: float
    actor: str
    verb: str
    subject: str
    detail: Mapping[str, Any]
    previous: str
    hash: str
