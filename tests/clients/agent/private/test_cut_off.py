"""Law: killed at any effect of learning, serving or forgetting, a core is the old or the new one.

What is checked at each effect is in ``cut_off.check_after``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.driven import DEADLINE_S, found_by
from tests.clients.agent.private.wearing import worn


@pytest.fixture
def template(learnt: Path, folder: Path, releases: list[Release]) -> Path:
    state = Path(shutil.copytree(learnt, folder / "template"))
    with worn(state, Turned().world()) as wearer:
        wearer.bring(releases[2])
    return state


def cut_off(template: Path, folder: Path, stride: int) -> dict[str, int]:
    return found_by("tests.clients.agent.private.cut_off", template, folder, stride)


def test_killed_at_every_113th_effect_or_so_a_core_is_the_old_or_the_new_one(
    template: Path, folder: Path
) -> None:
    found = cut_off(template, folder, 113)
    assert found["kills"] >= 4


@pytest.mark.faults
@pytest.mark.timeout(DEADLINE_S)
def test_killed_at_every_effect_a_core_is_the_old_or_the_new_one(
    template: Path, folder: Path
) -> None:
    found = cut_off(template, folder, 1)
    assert found["kills"] == found["effects"] > 150
