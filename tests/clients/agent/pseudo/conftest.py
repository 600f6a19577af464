from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.store import open_store
from tests.clients.agent.answering.conftest import turned
from tests.clients.agent.answering.devices import NOON
from tests.clients.agent.calibrating.conftest import base, installed, releases
from tests.clients.agent.pseudo.unlabelled import filled

__all__ = ["base", "installed", "releases", "turned"]


@pytest.fixture
def state(installed: Path, tmp_path: Path) -> Path:
    state = Path(shutil.copytree(installed, tmp_path / "state"))
    with open_store(state, clock=NOON.timestamp) as store:
        filled(store)
    return state
