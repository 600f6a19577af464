from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.control.cli.root import run
from server.control.reach import opened_fleet
from server.control.service import Server, serve
from server.service.folder import ServerFolder
from tests.server.control.controlling import AUTHORITY, SERVER

Json = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(folder: ServerFolder, capsys: pytest.CaptureFixture[str]) -> Json:
    """Run a command with ``--format json``; return its code and the one document it printed."""

    def ask(*words: object) -> tuple[int, dict[str, Any]]:
        code = run([*map(str, words), "--format", "json"])
        told = json.loads(capsys.readouterr().out)
        assert told.get("exit_code", code) == code
        return code, told.get("data", told)

    return ask


@pytest.fixture
def read(folder: ServerFolder, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command as a person; return what it printed."""

    def read(*words: object) -> str:
        assert run([*map(str, words)]) == 0
        return capsys.readouterr().out

    return read


@pytest.fixture
def server(folder: ServerFolder) -> Iterator[Server]:
    fleet = opened_fleet(folder)
    with fleet.registry, serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate) as server:
        yield server
