"""Law: killed at any effect of learning, serving or forgetting, a core is the old or the new one.

What is checked at each effect is in ``cut_off.check_after``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.private.wearing import worn

ROOT = Path(__file__).resolve().parents[4]
DEADLINE_S = 3000


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: what a kill spares does not depend on the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def template(learnt: Path, folder: Path, releases: list[Release]) -> Path:
    state = Path(shutil.copytree(learnt, folder / "template"))
    with worn(state, Turned().world()) as wearer:
        wearer.bring(releases[2])
    return state


def cut_off(template: Path, folder: Path, stride: int) -> dict[str, int]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.clients.agent.private.cut_off"),
            *(str(template), str(folder), str(stride)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


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
