from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.agent.driven import found_by

PATIENCE_S = 300.0


def killed(folder: Path, stride: int) -> dict[str, Any]:
    return found_by("tests.clients.agent.drifting.cut_off", folder, stride, limit_s=PATIENCE_S)


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
