"""Law: killed at any effect, guarded trainings with pseudo-labels end in the same bytes.

What is checked at each effect is in ``cut_off_with.check_after``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.store import open_store
from tests.clients.agent.answering.devices import NOON
from tests.clients.agent.driven import DEADLINE_S, found_by
from tests.clients.agent.pseudo.unlabelled import filled


@pytest.fixture
def template(installed: Path, folder: Path) -> Path:
    state = Path(shutil.copytree(installed, folder / "template"))
    with open_store(state, clock=NOON.timestamp) as store:
        filled(store)
    return state


def cut_off(template: Path, folder: Path, stride: int, first: int = 1) -> dict[str, int]:
    module = "tests.clients.agent.pseudo.cut_off_with"
    return found_by(module, template, folder, stride, first)


def test_killed_at_every_113th_effect_or_so_they_end_in_the_same_bytes(
    template: Path, folder: Path
) -> None:
    found = cut_off(template, folder, 113, 59)
    assert found["kills"] >= 2
    assert found["resumed"] >= 1


@pytest.mark.faults
@pytest.mark.timeout(DEADLINE_S)
def test_killed_at_every_effect_they_end_in_the_same_bytes(template: Path, folder: Path) -> None:
    found = cut_off(template, folder, 1)
    assert found["kills"] == found["effects"] > 200
    assert min(found["resumed"], found["begun"], found["gone"]) > 5
