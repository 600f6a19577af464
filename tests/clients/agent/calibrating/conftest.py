from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.serving.serve import Serving
from clients.agent.store import open_store
from fleet.adapt.base import Base, save_base
from fleet.federate.releases import Release
from tests.clients.agent.answering.conftest import turned
from tests.clients.agent.answering.devices import NOON
from tests.clients.agent.calibrating.changed import add, trained_base
from tests.clients.agent.serving.factories import LABELS, chain_of

__all__ = ["turned"]


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
    """A device with windows of a sensor that was changed, none with a label."""
    state = Path(shutil.copytree(installed, tmp_path / "state"))
    with open_store(state, clock=NOON.timestamp) as store:
        add(store, 100, seed=1)
    return state


@pytest.fixture
def labelled(state: Path) -> Path:
    with open_store(state, clock=NOON.timestamp) as store:
        add(store, 60, seed=2, labels=True)
    return state


@pytest.fixture
def particular(state: Path) -> Path:
    """Windows of a person who means other things by two of the names: a core has to learn it."""
    with open_store(state, clock=NOON.timestamp) as store:
        add(store, 60, seed=2, labels=True, names=(LABELS[1], LABELS[0], *LABELS[2:]))
    return state
