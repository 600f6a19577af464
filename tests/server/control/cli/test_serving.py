"""What `fleet server up` tells once devices can come."""

from __future__ import annotations

import time

from server.control.cli.serving import _welcome
from server.control.reach import REGISTRY
from server.registry import open_registry
from server.service.config import ServerConfig, Service
from server.service.folder import ServerFolder
from server.standing.policy import FleetPolicy
from tests.server.registry.filled import BASE

STANDING = ServerConfig(service=Service(standing=True))


def test_first_steps_are_told_until_they_are_done(folder: ServerFolder) -> None:
    (folder.path / REGISTRY).unlink()
    fresh = _welcome(STANDING, folder)
    assert "fleet-device init" in fresh
    assert "fleet base install" in fresh
    assert "fleet policy set base=DIGEST" in fresh


def test_steps_that_are_done_are_left_out(folder: ServerFolder) -> None:
    lived = _welcome(STANDING, folder)
    for step in ("fleet-device init", "fleet device enroll", "fleet base install"):
        assert step not in lived
    assert "fleet policy set base=DIGEST" in lived
    with open_registry(folder.path / REGISTRY, clock=time.time) as registry:
        registry.policy.set(FleetPolicy(base=BASE.digest), actor="anna")
    done = _welcome(STANDING, folder)
    assert "fleet policy set" not in done
    assert "a round:      fleet round start" in done
    assert "fleet device list" in done


def test_a_registry_that_cannot_be_read_leaves_all_steps_in(folder: ServerFolder) -> None:
    (folder.path / REGISTRY).write_bytes(b"no database" * 1000)
    assert "fleet base install" in _welcome(STANDING, folder)
