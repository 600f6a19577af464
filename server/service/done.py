"""Which first steps with a standing server are done, so that nobody is told them again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import FleetError
from server.service.folder import ServerFolder

__all__ = ["Done", "done_in"]


@dataclass(frozen=True)
class Done:
    """First steps.

    Args:
        device: Whether a device is enrolled.
        base: Whether a base is installed.
        policy: Whether there is a policy.
        on_order: Whether by that policy rounds are opened on order alone.
    """

    device: bool = False
    base: bool = False
    policy: bool = False
    on_order: bool = False


def done_in(folder: ServerFolder) -> Done:
    """Return what is done; nothing where the registry is no file here, or cannot be read.

    A database elsewhere is not asked: whoever calls supervises processes meanwhile, and would wait.
    """
    from server.control.reach import registry_place
    from server.registry import open_registry

    try:
        place = registry_place(folder)
        if not isinstance(place, Path) or not place.exists():
            return Done()
        with open_registry(place, clock=time.time) as registry:
            policy = registry.policy.newest()
            return Done(
                device=any(each.revoked is None for each in registry.devices.all()),
                base=bool(registry.bases.all()),
                policy=policy is not None,
                on_order=policy is not None and not policy.policy.every_s,
            )
    except FleetError:
        return Done()
