from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients.link.records import Answer, Request
from clients.link.service import Server, serve
from tests.clients.link.agent_process import Serve, about


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket, which pytest's own may not be."""
    made = Path(tempfile.mkdtemp(prefix="link-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def socket(folder: Path) -> Path:
    return folder / "agent.sock"


@pytest.fixture
def agent(socket: Path) -> Iterator[Serve]:
    """Serves on ``socket``; what is still open at the end is closed."""
    servers: list[Server] = []

    def start(answer: Callable[[Request], Answer]) -> Server:
        servers.append(serve(socket, answer, about))
        return servers[-1]

    yield start
    for server in servers:
        server.close(0)
