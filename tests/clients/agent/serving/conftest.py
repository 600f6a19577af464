from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, save_base
from fleet.federate.releases import Release
from tests.clients.agent.serving.factories import chain_of, make_base


@pytest.fixture(scope="session")
def base() -> Base:
    return make_base()


@pytest.fixture(scope="session")
def releases(base: Base) -> list[Release]:
    """Releases 0 to 4."""
    return chain_of(base, 4)


@pytest.fixture(scope="session")
def base_file(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_base(base, path)
    return path


@pytest.fixture(scope="session")
def installed(base_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory that serves its base; copy it before you change it."""
    state = tmp_path_factory.mktemp("installed") / "state"
    Serving(state).install_base(base_file)
    return state


@pytest.fixture
def state(installed: Path, tmp_path: Path) -> Path:
    """A state directory of one's own that serves its base."""
    return Path(shutil.copytree(installed, tmp_path / "state"))


@pytest.fixture
def serving(state: Path) -> Serving:
    return Serving(state)
