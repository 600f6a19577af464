"""Law: killed or refused at any effect of a move to another base, a device is on old or new, whole.

What is checked at each effect is in ``moving_cut_off.check_after``.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fleet.adapt.base import Base
from fleet.errors import StorageError
from fleet.federate.releases import Release
from tests.clients.agent.answering.cut_off import KINDS
from tests.clients.agent.answering.devices import Turned, opened, release_message
from tests.clients.agent.answering.moving import kernels_of, later_bases, rebase_of
from tests.clients.agent.driven import DEADLINE_S, found_by

# Of 220 effects; of 90 that write.
STRIDES = {"killed": 43, "full-once": 37}
STEPS = {"moved", "trained", "back", "forward"}


def cut_off(folder: Path, **strides: int) -> dict[str, Any]:
    wanted = [f"{kind}={stride}" for kind, stride in strides.items()]
    return found_by("tests.clients.agent.answering.moving_cut_off", folder, *wanted)


def test_a_device_that_moves_is_cut_off_at_every_43rd_effect_or_so_and_ends_as_a_quiet_one(
    folder: Path,
) -> None:
    found = cut_off(folder, **STRIDES)
    assert found["killed"]["cuts"] >= 5
    assert found["full-once"]["cuts"] == 2
    assert found["full-once"]["points"]


@pytest.mark.faults
@pytest.mark.timeout(DEADLINE_S)
def test_a_device_that_moves_is_killed_at_every_effect_and_ends_as_a_quiet_one(
    folder: Path,
) -> None:
    found = cut_off(folder, killed=1)["killed"]
    assert found["cuts"] == found["effects"] > 200
    assert {point.split()[1] for point in found["points"] if point.startswith("asked")} == STEPS


@pytest.mark.faults
@pytest.mark.timeout(DEADLINE_S)
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_moves_is_refused_at_every_effect_serves_on_and_moves_once_it_can(
    kind: str, folder: Path
) -> None:
    found = cut_off(folder, **{kind: 1})[kind]
    assert found["cuts"] == found["effects"] > 80
    assert {point.split()[1] for point in found["points"]} == STEPS


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("mkdir", "/model/bases"),
        ("fsync", ".tmp"),
        ("replace", ".tmp"),
        ("fsync", "/model/bases"),
        ("fsync", "/model"),
    ],
)
def test_a_base_that_could_not_be_kept_is_a_reason_and_is_asked_for_no_second_time(
    state: Path,
    turned: Turned,
    base: Base,
    releases: list[Release],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    where: str,
) -> None:
    move = rebase_of(base, releases[2])

    def full(path: object, *rest: Any, **words: Any) -> Any:
        place = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
        if place.endswith(where):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *rest, **words)

    original = getattr(os, name)
    with opened(state, turned.world()) as device:
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(StorageError) as why:
                device.ask("query.release", move.message())
            assert why.value.code in ("folder-failed", "disk-full")
            assert device.serving.served is not None
            assert device.serving.served.number == 0
        status = device.ask("query.release", release_message(move.release)).config
        assert status["serves"] == kernels_of(move.base, move.release)
    assert later_bases(state) == [f"{move.base.digest[:16]}.safetensors"]
