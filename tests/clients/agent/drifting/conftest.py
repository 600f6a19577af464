from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.agent.store import Store, open_store
from tests.clients.agent.answering.conftest import turned
from tests.clients.agent.answering.devices import NOON
from tests.clients.agent.serving.conftest import base, base_file, installed, releases

__all__ = ["base", "base_file", "installed", "releases", "turned"]


@pytest.fixture
def state(installed: Path, tmp_path: Path) -> Path:
    """A state directory that serves its base and has no windows yet."""
    return Path(shutil.copytree(installed, tmp_path / "state"))


@pytest.fixture
def store(state: Path) -> Iterator[Store]:
    with open_store(state, clock=NOON.timestamp) as opened:
        yield opened
