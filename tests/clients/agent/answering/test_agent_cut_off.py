"""Law: cut off or refused at any effect, an agent serves, keeps its word, and answers a plan once.

What is checked at each effect is in ``cut_off.check_after`` and ``life``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet.errors import StorageError
from fleet.federate.releases import Release
from tests.clients.agent.answering.cut_off import KINDS
from tests.clients.agent.answering.devices import Turned, opened, train_message
from tests.clients.agent.answering.disturbed import Refused
from tests.clients.agent.answering.life import digest_of
from tests.clients.agent.driven import DEADLINE_S, found_by

# Of 423 effects; of 286 that write. No divisors of what a step of training repeats.
STRIDES = {"killed": 61, "full-once": 113, "full": 131, "read-only": 139, "limited": 127}
STEPS = {"open", "take_in", "label", "train", "release"}


def cut_off(folder: Path, **strides: int) -> dict[str, Any]:
    wanted = [f"{kind}={stride}" for kind, stride in strides.items()]
    return found_by("tests.clients.agent.answering.cut_off", folder, *wanted)


def test_an_agent_cut_off_or_refused_at_every_61st_effect_or_so_ends_where_an_unbroken_one_does(
    folder: Path,
) -> None:
    found = cut_off(folder, **STRIDES)
    assert found["killed"]["effects"] > 400
    assert found["killed"]["cuts"] > 5
    assert {"asked train", "windows train"} <= set(found["killed"]["points"])
    for kind in KINDS:
        assert found[kind]["effects"] > 250
        assert len(found[kind]["points"]) > 1


@pytest.mark.faults
@pytest.mark.timeout(DEADLINE_S)
def test_an_agent_killed_at_every_effect_ends_where_an_unbroken_one_does(folder: Path) -> None:
    found = cut_off(folder, killed=1)["killed"]
    assert found["cuts"] == found["effects"] > 400
    assert sum(found["points"].values()) == found["cuts"]
    asked = {"asked train", "asked query.release", "asked evaluate"}
    assert {"nothing", "opened", "windows train", *asked} <= set(found["points"])


@pytest.mark.faults
@pytest.mark.timeout(DEADLINE_S)
@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_refused_at_every_effect_says_so_serves_on_and_recovers_without_a_restart(
    kind: str, folder: Path
) -> None:
    found = cut_off(folder, **{kind: 1})[kind]
    assert found["cuts"] == found["effects"] > 250
    assert {point.split()[0] for point in found["points"]} == STEPS


def test_an_update_that_is_kept_is_sent_also_from_a_disk_that_is_full(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    disk = Refused("full", 0)
    with pytest.MonkeyPatch.context() as patched:
        disk.hook(patched)
        with opened(state, turned.world()) as device:
            first = device.ask("train", train_message(releases[1]))
            disk.at = 1
            again = device.ask("train", train_message(releases[1]))
            assert digest_of(again) == digest_of(first)
            assert {said["reason"] for said in turned.said("store.refused")} == {"disk-full"}
            with pytest.raises(StorageError, match="no space left") as caught:
                device.ask("train", train_message(releases[1], seed=1))
            assert caught.value.code == "disk-full"
            disk.heal()
            device.ask("train", train_message(releases[1], seed=1))
