from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PATIENCE_S = 300.0


def killed(folder: Path, stride: int) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.clients.agent.drifting.cut_off", str(folder)]
    done = subprocess.run(
        [*command, str(stride)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(found: dict[str, object]) -> None:
    kept = found["kept"]
    assert isinstance(kept, dict)
    assert kept["drift.alarms.label-free"] == 1
    assert json.loads(kept["drift.cursor.label-free"])["window"] == 400


def test_a_look_that_was_killed_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    check(killed(tmp_path, stride=53))


@pytest.mark.faults
def test_a_look_killed_at_one_statement_in_four_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    check(killed(tmp_path, stride=4))
