from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.agent.cli.root import run

Json = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Json:
    """Run a command with ``--format json``; return its code and the one document it printed."""

    def ask(*arguments: object) -> tuple[int, dict[str, Any]]:
        code = run([*map(str, arguments), "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory that commands take when none is named: no test sees the user's own."""
    monkeypatch.setenv("COREFLEET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"
