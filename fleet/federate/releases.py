"""Releases: numbered, chained, cumulative core states over one immutable base.

A release is the base's digest plus the sum of all that the fleet has learned since, so a device
that was away for a month needs one core-sized message whatever it missed, and going back is
choosing another release: state is recomputed from the base, never subtracted.

Laws (tests/fleet/federate/test_releases.py): ``catch_up`` has one size for every release a device
may hold; following every release and catching up once end in one digest; back and forward again
returns the same digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import Base, base_of_bytes, read_bundle, write_bundle
from fleet.adapt.digest import digest_json
from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError, StorageError
from fleet.federate.aggregate import dequantise
from fleet.federate.wire import BASE_BUNDLE, Payload, decode_state, encode_state

__all__ = [
    "Release",
    "base_with",
    "catch_up",
    "first_release",
    "follow",
    "load_release",
    "next_release",
    "save_release",
]

FORMAT = "corefleet.release.1"


@dataclass(frozen=True, eq=False)
class Release:
    """One point of the fleet's history.

    Args:
        number: 0 is the base itself.
        base: Digest of the base.
        frame: Digest of its frames.
        parent: Digest of the release it was made from; empty for number 0.
        method: What was trained, see ``fleet.peft``.
        state: Cumulative core state relative to the base, float32.
        provenance: How it came about (round, plan, rule, devices, weights); JSON, not part of the
            digest, which names what is served and by which line of releases.
    """

    number: int
    base: str
    frame: str
    parent: str
    method: str
    state: CoreState
    provenance: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def digest(self) -> str:
        """The release's name: digest of number, base, frames, parent, method and state."""
        identity = [FORMAT, self.number, self.base, self.frame, self.parent, self.method]
        return digest_json([*identity, self.state.digest])


def first_release(base: Base, method: str, layout: Layout) -> Release:
    """Return release 0: the base, unmoved."""
    return Release(0, base.digest, base.frame_digest, "", method, CoreState.zero(layout))


def next_release(
    parent: Release, mean: NDArray[np.int64], provenance: Mapping[str, Any], *, number: int = 0
) -> Release:
    """Move a release by an aggregate.

    Args:
        parent: Release that the cohort trained from.
        mean: Mean delta in steps of 2⁻³², int64 ``(size,)``.
        provenance: How it came about.
        number: Number of the new release; by default the parent's plus one. After a rollback it is
            higher, since numbers are never used twice.

    Raises:
        MismatchError: ``release-number`` when the number is not above the parent's.
    """
    number = number or parent.number + 1
    if number <= parent.number:
        raise MismatchError(
            "release-number",
            f"release numbers ascend: {number} cannot follow {parent.number}",
        )
    moved = parent.state.flat().astype(np.float64) + dequantise(mean)
    state = CoreState.from_flat(parent.state.layout, moved.astype(np.float32))
    return Release(
        number,
        parent.base,
        parent.frame,
        parent.digest,
        parent.method,
        state,
        MappingProxyType(dict(provenance)),
    )


def catch_up(target: Release) -> Payload:
    """Return the one message that brings a device to ``target`` from any release of its base."""
    return encode_state(
        target.state, {"base": target.base, "frame": target.frame, "release": target.number}
    )


def follow(base: Base, layout: Layout, message: Payload) -> CoreState:
    """Return the core state that a device serves after a catch-up message.

    Raises:
        MismatchError: ``wrong-base``, ``wrong-frame`` or ``wrong-layout`` when the message is for
            another fleet or method.
    """
    own_digests = (
        ("base", base.digest),
        ("frame", base.frame_digest),
        ("layout", layout.digest),
    )
    for name, own in own_digests:
        if message.config.get(name) != own:
            raise MismatchError(
                f"wrong-{name}",
                f"the message is for {name} {str(message.config.get(name))[:12]}…, "
                f"this device holds {own[:12]}…",
                "Install the base that the fleet uses, and train by its method.",
            )
    return decode_state(message, layout)


def base_with(message: Payload) -> Base | None:
    """Return the base that a message about a release brings along, None when it brings none.

    Raises:
        StorageError: ``bundle-damaged`` or ``base-damaged``.
        MismatchError: ``wrong-bundle`` when its release is of another base; ``bundle-format``.
    """
    content = message.config.get(BASE_BUNDLE)
    if content is None:
        return None
    base = base_of_bytes(content if isinstance(content, bytes) else b"", "the base of a message")
    if base.digest != message.config.get("base"):
        raise MismatchError(
            "wrong-bundle",
            f"a message brought base {base.digest[:12]}… with a release of base "
            f"{str(message.config.get('base'))[:12]}…",
            "",
        )
    return base


def save_release(release: Release, path: Path) -> None:
    """Write a release durably to one safetensors file."""
    record = {
        "format": FORMAT,
        "digest": release.digest,
        "number": release.number,
        "base": release.base,
        "frame": release.frame,
        "parent": release.parent,
        "method": release.method,
        "provenance": dict(release.provenance),
    }
    write_bundle(path, release.state.arrays, record)


def load_release(path: Path) -> Release:
    """Read a release and check that its content has the digest that it carries.

    Raises:
        StorageError: ``bundle-missing``, ``bundle-damaged`` or ``release-damaged``.
        MismatchError: ``bundle-format``.
    """
    tensors, record = read_bundle(path, FORMAT)
    try:
        release = Release(
            int(record["number"]),
            str(record["base"]),
            str(record["frame"]),
            str(record["parent"]),
            str(record["method"]),
            CoreState.of(tensors),
            MappingProxyType(dict(record["provenance"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("release-damaged", f"{path} is no whole release: {error}", "") from error
    if release.digest != record.get("digest"):
        raise StorageError(
            "release-damaged",
            f"{path} carries digest {str(record.get('digest'))[:12]}…, its content has "
            f"{release.digest[:12]}…",
            "The file was changed; take the release from the server again.",
        )
    return release
