from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.agent.answering.devices import Device, Turned, fill, opened
from tests.clients.agent.serving.conftest import base, base_file, installed, releases

__all__ = ["base", "base_file", "installed", "releases"]


@pytest.fixture(scope="session")
def filled(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a base and labelled windows; copy it before you change it."""
    state = Path(shutil.copytree(installed, tmp_path_factory.mktemp("filled") / "state"))
    fill(state)
    return state


@pytest.fixture
def state(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "state"))


@pytest.fixture
def turned() -> Turned:
    return Turned()


@pytest.fixture
def device(state: Path, turned: Turned) -> Iterator[Device]:
    with opened(state, turned.world()) as made:
        yield made


@pytest.fixture
def pinned(device: Device, state: Path) -> Device:
    # Not above: without cryptography the tests of signatures alone are skipped.
    from tests.clients.agent.answering.signed import KEY, trust

    trust(device, state, KEY)
    return device
