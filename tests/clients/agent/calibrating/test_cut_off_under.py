"""Law: killed at any effect of taking, serving, training or forgetting, they are old or new, whole.

What is checked at each effect is in ``cut_off_under.check_after``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.calibrating.changed import add, wearing
from tests.clients.agent.driven import DEADLINE_S, found_by


@pytest.fixture
def template(installed: Path, folder: Path, releases: list[Release]) -> Path:
    state = Path(shutil.copytree(installed, folder / "template"))
    with wearing(state, Turned().world()) as wearer:
        add(wearer.device.store, 40, seed=1)
        add(wearer.device.store, 16, seed=2, labels=True)
        add(wearer.device.store, 40, seed=3, person="ben")
        wearer.serve(releases[1])
        wearer.cores.look()
        assert wearer.model().personal
    return state


def cut_off(template: Path, folder: Path, stride: int) -> dict[str, int]:
    module = "tests.clients.agent.calibrating.cut_off_under"
    return found_by(module, template, folder, stride)


def test_killed_at_every_113th_effect_or_so_they_are_old_or_new_and_end_the_same(
    template: Path, folder: Path
) -> None:
    assert cut_off(template, folder, 113)["kills"] >= 3


@pytest.mark.faults
@pytest.mark.timeout(DEADLINE_S)
def test_killed_at_every_effect_they_are_old_or_new_and_end_the_same(
    template: Path, folder: Path
) -> None:
    found = cut_off(template, folder, 1)
    assert found["kills"] == found["effects"] > 150
