from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.federate.releases import Release
from tests.clients.agent.answering.conftest import turned
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.private.wearing import Wearer, wear, worn
from tests.clients.agent.serving.conftest import base, base_file, installed, releases

__all__ = ["base", "base_file", "installed", "releases", "turned"]


@pytest.fixture(scope="session")
def dressed(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a base and a person's windows; copy it before you change it."""
    state = Path(shutil.copytree(installed, tmp_path_factory.mktemp("dressed") / "state"))
    wear(state)
    return state


@pytest.fixture(scope="session")
def brought(
    dressed: Path, releases: list[Release], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same after a plan of the fleet: it serves release 1 and has learned no core yet."""
    state = Path(shutil.copytree(dressed, tmp_path_factory.mktemp("brought") / "state"))
    with worn(state, Turned().world()) as wearer:
        wearer.bring(releases[1])
    return state


@pytest.fixture(scope="session")
def learnt(brought: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a private core that is served."""
    state = Path(shutil.copytree(brought, tmp_path_factory.mktemp("learnt") / "state"))
    with worn(state, Turned().world()) as wearer:
        assert wearer.cores.look() == "trained"
    return state


@pytest.fixture
def state(brought: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(brought, tmp_path / "state"))


@pytest.fixture
def wearer(state: Path, turned: Turned) -> Iterator[Wearer]:
    with worn(state, turned.world()) as made:
        yield made
