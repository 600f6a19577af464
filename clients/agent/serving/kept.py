"""Kept releases: the core states that a device can go to, each in one small file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clients.agent.serving.records import release_name
from fleet.adapt.base import Base, read_bundle, write_bundle
from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError, StorageError
from fleet.federate.records import Plan
from fleet.federate.releases import Release, follow
from fleet.federate.wire import Payload

__all__ = ["KeptRelease", "load_kept", "save_kept"]

FORMAT = "corefleet.kept.1"
LARGEST_NUMBER = 2**63 - 1  # what a status, a health and the store can hold


@dataclass(frozen=True, eq=False)
class KeptRelease:
    """One release as a device holds it: all that a merge needs, whatever way it came.

    A catch-up message and a plan carry the state and not the parent, so what names a release here
    is its number and the digest of its state, which plans and ``fleet release digest`` show.

    Args:
        number: 0 is the base itself.
        base: Digest of the base.
        frame: Digest of its frames.
        method: What was trained, see ``fleet.peft``; empty for the bare base.
        state: Cumulative core state relative to the base, float32.
        published: The release's own digest; empty when the state came alone.
        signed_by: Id of the pinned key that signed it, see ``fleet.federate.signing.key_id``;
            empty when that was not verified.
    """

    number: int
    base: str
    frame: str
    method: str
    state: CoreState
    published: str = ""
    signed_by: str = ""

    @property
    def name(self) -> str:
        """Name of its files."""
        return release_name(self.number, self.state.digest)

    @property
    def moved(self) -> bool:
        """Whether it is anything but the base itself, which the device was given by hand."""
        return self.number != 0 or bool(self.state.flat().any())

    def same_content(self, other: KeptRelease) -> bool:
        """Tell whether a merge of either gives the same, whatever else is known of them."""
        own = (self.number, self.base, self.frame, self.method, self.state.digest)
        its = (other.number, other.base, other.frame, other.method, other.state.digest)
        return own == its

    @classmethod
    def bare(cls, base: Base) -> KeptRelease:
        """Return release 0: the base, unmoved."""
        return cls(0, base.digest, base.frame_digest, "", CoreState.of({}))

    @classmethod
    def of_release(cls, release: Release) -> KeptRelease:
        """Keep a whole release, e.g. from a file."""
        return cls(
            release.number,
            release.base,
            release.frame,
            release.method,
            release.state,
            release.digest,
        )

    @classmethod
    def of_message(cls, message: Payload, base: Base, layout: Layout, method: str) -> KeptRelease:
        """Keep what a catch-up message brings (:func:`fleet.federate.releases.catch_up`).

        Raises:
            MismatchError: ``wrong-base``, ``wrong-frame``, ``wrong-layout`` or ``release-number``.
        """
        state = follow(base, layout, message)
        number = message.config.get("release")
        return cls(_check_number(number), base.digest, base.frame_digest, method, state)

    @classmethod
    def of_plan(cls, plan: Plan, state: CoreState) -> KeptRelease:
        """Keep the release that a plan trains from.

        Raises:
            MismatchError: ``wrong-state`` when the state is not the plan's, ``release-number``.
        """
        if state.digest != plan.state:
            raise MismatchError(
                "wrong-state",
                f"the plan trains from state {plan.state[:12]}…, this one is {state.digest[:12]}…",
            )
        _check_number(plan.release)
        return cls(plan.release, plan.base, plan.frame, plan.method, state)


def _check_number(number: object) -> int:
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= LARGEST_NUMBER:
        return number
    raise MismatchError(
        "release-number",
        f"a release has a number of 0 to {LARGEST_NUMBER}, not {str(number)[:40]!r}",
    )


def save_kept(release: KeptRelease, path: Path) -> None:
    """Write a release durably to one safetensors file.

    Raises:
        StorageError: See :func:`fleet.files.atomic_path`.
    """
    record = {
        "format": FORMAT,
        "number": release.number,
        "base": release.base,
        "frame": release.frame,
        "method": release.method,
        "state": release.state.digest,
        "published": release.published,
        "signed_by": release.signed_by,
    }
    write_bundle(path, release.state.arrays, record)


def load_kept(path: Path) -> KeptRelease:
    """Read a release and check that its state has the digest that it carries.

    Raises:
        StorageError: ``bundle-missing``, ``bundle-unreadable``, ``bundle-damaged`` or
            ``release-damaged``.
        MismatchError: ``bundle-format``.
    """
    tensors, record = read_bundle(path, FORMAT)
    try:
        release = KeptRelease(
            int(record["number"]),
            str(record["base"]),
            str(record["frame"]),
            str(record["method"]),
            CoreState.of(tensors),
            str(record["published"]),
            str(record.get("signed_by", "")),  # files from before there were signatures
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("release-damaged", f"{path} is no whole release: {error}", "") from error
    if (release.state.digest, release.name) != (record.get("state"), path.stem):
        raise StorageError(
            "release-damaged",
            f"{path} carries state {str(record.get('state'))[:12]}…, its content is {release.name}",
            "The file was changed; the next message from the server brings it again.",
        )
    return release
