"""What can be asked of a server: one frozen record per verb, the same here, on the wire and in CLI.

The actor is in none of them: it is the name on the certificate, or the local user. Every change
carries an idempotency key; what destroys something can be asked as a dry run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.errors import InputError
from fleet.federate.records import problems_of

__all__ = [
    "LARGEST_BASE",
    "REQUESTS",
    "AuditList",
    "AuditVerify",
    "BaseInstall",
    "BaseList",
    "Change",
    "DeviceEnroll",
    "DeviceList",
    "DeviceQuarantine",
    "DeviceReadmit",
    "DeviceRevoke",
    "DeviceShow",
    "DeviceTag",
    "DeviceWhy",
    "OperatorList",
    "OperatorRevoke",
    "PolicySet",
    "PolicyShow",
    "RegistryBackup",
    "ReleaseDiff",
    "ReleaseExport",
    "ReleaseList",
    "ReleasePin",
    "ReleasePromote",
    "ReleaseRebase",
    "ReleaseRollback",
    "ReleaseShow",
    "ReleaseVerify",
    "ReleaseWithdraw",
    "Request",
    "RoundAbort",
    "RoundList",
    "RoundReplay",
    "RoundShow",
    "RoundStart",
]

LARGEST_PAGE = 1000
"""Rows of one answer."""
LARGEST_KEY = 64
"""Characters of an idempotency key."""
LARGEST_POLICY = 32_768
LARGEST_BASE = 16 * 2**20
"""Bytes of a base's file; one of the shipped backbones has about a million."""
NUMBER = 2**31 - 1

Name = Field(min_length=1, max_length=128)
Number = Field(ge=0, le=NUMBER)
Page = Field(default=LARGEST_PAGE, ge=1, le=LARGEST_PAGE)
Why = Field(default="", max_length=500)


class Request(BaseModel):
    """What is asked; it changes nothing unless it is a :class:`Change`.

    Raises:
        InputError: ``bad-request``, listing every problem at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    changes: ClassVar[bool] = False

    if not TYPE_CHECKING:  # the fields stay the signature

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise InputError(
                    "bad-request", f"the request breaks a rule: {problems_of(error)}", ""
                ) from error


class Change(Request):
    """What is asked to change something.

    Args:
        key: Idempotency key; the same request with the same key is done once.
    """

    changes: ClassVar[bool] = True
    key: str = Field(min_length=1, max_length=LARGEST_KEY)


class Destruction(Change):
    """A change that takes something away.

    Args:
        dry_run: Only tell which devices, releases and rounds it touches.
        why: The reason, for the audit.
    """

    dry_run: bool = False
    why: str = Why


class DeviceList(Request):
    """Devices, by name; only those with a tag or in a state.

    Args:
        tag: A tag; empty for any.
        state: A state; empty for any but ``revoked``.
        revoked: The revoked ones as well.
    """

    tag: str = ""
    state: str = Field(default="", pattern="^(|enrolled|quarantined|revoked)$")
    revoked: bool = False


class DeviceShow(Request):
    """One device."""

    device: str = Name


class DeviceWhy(Request):
    """Why a device took part in the last round or not, and whether it serves what it should."""

    device: str = Name


class DeviceQuarantine(Destruction):
    """Keep a device out of rounds."""

    device: str = Name


class DeviceReadmit(Change):
    """Let a device in quarantine take part again."""

    device: str = Name
    why: str = Why


class DeviceEnroll(Change):
    """Let a device join, by its public key."""

    device: str = Name
    public_key: str = Field(min_length=1, max_length=8192)
    tags: tuple[str, ...] = Field(default=(), max_length=32)
    why: str = Why


class DeviceRevoke(Destruction):
    """Take a device's key away for good."""

    device: str = Name


class DeviceTag(Change):
    """Put tags on a device and take others off."""

    device: str = Name
    add: tuple[str, ...] = Field(default=(), max_length=32)
    remove: tuple[str, ...] = Field(default=(), max_length=32)


class RoundList(Request):
    """The newest rounds, in order."""

    newest: int = Page


class RoundShow(Request):
    """One round; without a number the last one."""

    round: int | None = Field(default=None, ge=1, le=NUMBER)
    attempt: int | None = Field(default=None, ge=1, le=NUMBER)


class RoundStart(Change):
    """Order a round now."""

    why: str = Why


class RoundAbort(Destruction):
    """Order that the open round ends without a release."""


class RoundReplay(Request):
    """Recompute a round's release from its stored updates; nothing is written.

    Args:
        round: Its number.
        without: Devices to leave out.
        rule: Another aggregation rule, as ``fleet.federate.rule`` spells it; empty for the round's.
    """

    round: int = Field(ge=1, le=NUMBER)
    without: tuple[str, ...] = Field(default=(), max_length=LARGEST_PAGE)
    rule: str = Field(default="", max_length=64)


class ReleaseList(Request):
    """Releases, by number."""

    newest: int = Page


class ReleaseShow(Request):
    """One release; without a number the fleet's."""

    release: int | None = Field(default=None, ge=0, le=NUMBER)


class ReleaseDiff(Request):
    """How far each layer moved between two releases."""

    first: int = Number
    second: int = Number


class ReleaseExport(Request):
    """A release as a file's bytes, as ``fleet.federate.releases.load_release`` reads it."""

    release: int = Number


class ReleaseVerify(Request):
    """Digest, lineage and signature of every release."""


class ReleasePromote(Destruction):
    """Make a release the fleet's."""

    release: int = Number


class ReleaseRebase(Destruction):
    """Order that the fleet moves to another base that is installed.

    Args:
        base: Its digest.
        hold: Make the release, and do not promote it.
        another_network: Also where the base serves something else than the fleet's release.
        method: What rounds train on it; empty for what they train now.
    """

    base: str = Field(pattern="^[0-9a-f]{1,64}$")
    hold: bool = False
    another_network: bool = False
    method: str = Field(default="", max_length=64)


class ReleaseRollback(Destruction):
    """Make an earlier release the fleet's; without a number the one that it was made from."""

    release: int | None = Field(default=None, ge=0, le=NUMBER)


class ReleasePin(Destruction):
    """Keep a device, or all with a tag now, on a release; without one let them follow the fleet."""

    release: int | None = Field(default=None, ge=0, le=NUMBER)
    device: str = Field(default="", max_length=128)
    tag: str = Field(default="", max_length=64)


class ReleaseWithdraw(Destruction):
    """Forbid that devices are moved to a release."""

    release: int = Number


class BaseList(Request):
    """Bases that releases can be relative to."""


class BaseInstall(Change):
    """Let releases be relative to a base; changes nothing where it is installed.

    Args:
        content: Its file's bytes, as ``fleet.adapt.base.save_base`` writes them.
    """

    content: bytes = Field(min_length=1, max_length=LARGEST_BASE)


class PolicyShow(Request):
    """What rounds are made by, and since when."""


class PolicySet(Destruction):
    """Set the policy.

    Args:
        policy: JSON object: the keys to change.
    """

    policy: str = Field(min_length=2, max_length=LARGEST_POLICY)


class AuditList(Request):
    """Who did what: the newest rows, in order."""

    subject: str = Field(default="", max_length=500)
    before: int | None = Field(default=None, ge=1, le=2**62)
    newest: int = Field(default=100, ge=1, le=LARGEST_PAGE)


class AuditVerify(Request):
    """Follow the audit's whole chain.

    Args:
        seq: Number of a row that was written down before; 0 for none.
        hash: Its hash.
    """

    seq: int = Field(default=0, ge=0, le=2**62)
    hash: str = Field(default="", pattern="^([0-9a-f]{64})?$")


class OperatorList(Request):
    """Operators' certificates that this server has issued."""


class OperatorRevoke(Destruction):
    """Take an operator's certificates back.

    Args:
        operator: A certificate's serial number, or a name for all of theirs.
        last_admin: Also when no admin is left who could come in from elsewhere.
    """

    operator: str = Name
    last_admin: bool = False


class RegistryBackup(Change):
    """Back the server up to a file in its folder, without any private key.

    Args:
        name: Of the file, without its folder.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


def _all(kind: type[Request]) -> list[type[Request]]:
    below = [each for part in kind.__subclasses__() for each in _all(part)]
    return below or [kind]


REQUESTS: dict[str, type[Request]] = {each.__name__: each for each in _all(Request)}
"""Every verb's request, by the verb's name."""
