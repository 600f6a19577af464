from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, save_base
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.calibrating.changed import trained_base
from tests.clients.agent.serving.factories import chain_of


@pytest.fixture(scope="session")
def base() -> Base:
    return trained_base()


@pytest.fixture(scope="session")
def releases(base: Base) -> list[Release]:
    """Releases 0 to 3."""
    return chain_of(base, 3, step=0.02)


@pytest.fixture(scope="session")
def installed(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory that serves its base and has no windows; copy it before you change it."""
    folder = tmp_path_factory.mktemp("calibrating")
    save_base(base, folder / "base.safetensors")
    Serving(folder / "state").install_base(folder / "base.safetensors")
    return folder / "state"


@pytest.fixture
def state(installed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(installed, tmp_path / "state"))


@pytest.fixture
def turned() -> Turned:
    return Turned()
