"""A registry whose fleet serves a release of a base that can be read, and bases to move to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.adapt.base import bytes_of_base
from fleet.federate.releases import Release
from server.registry import Registry, open_registry
from tests.fleet.continual.bases import make_base, state_of
from tests.server.registry.filled import DEVICES, OPERATOR, Clock, key_of
from tests.server.standing.two_bases import made_from, more_of, shaken

OLD = make_base()
STATE = state_of(OLD, "core")
RELEASE = Release(0, OLD.digest, OLD.frame_digest, "", "core", STATE)
NEW = made_from(OLD, STATE)
GROWN = more_of(OLD, "stairs")
OTHER = shaken(OLD)


def on_a_release(registry: Registry) -> Registry:
    """Enroll devices, install four bases and put the fleet on a release of the first."""
    for device in DEVICES:
        registry.devices.enroll(device, key_of(device), actor=OPERATOR)
    for base in (OLD, NEW, GROWN, OTHER):
        registry.bases.install(base.digest, bytes_of_base(base), actor=OPERATOR)
    registry.releases.add(RELEASE, actor=OPERATOR)
    registry.releases.promote(0, actor=OPERATOR)
    return registry


@contextmanager
def moving_registry(path: Path, clock: Clock) -> Iterator[Registry]:
    """Open such a registry."""
    with open_registry(path, clock=clock) as registry:
        yield on_a_release(registry)
