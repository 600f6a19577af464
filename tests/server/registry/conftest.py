from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.registry import Registry, open_registry
from tests.server.registry.filled import Clock, filled
from tests.server.registry.postgres import Postgres, running

Place = Path | str


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a commit waits for its disk."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def template(memory: Path) -> Path:
    """An empty registry, to copy."""
    path = memory / "template.sqlite"
    open_registry(path, clock=lambda: 0.0).close()
    return path


@pytest.fixture
def file(memory: Path, template: Path) -> Iterator[Path]:
    """The file of an empty SQLite registry."""
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(shutil.copyfile(template, Path(name) / "registry.sqlite"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty registry in each kind of database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("file")
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.fresh()
    yield url
    server.drop(url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_again(place: Place, clock: Clock) -> Iterator[Callable[[], Registry]]:
    """Open the test's registry, as another process would; closed at the end."""
    made: list[Registry] = []

    def again() -> Registry:
        made.append(open_registry(place, clock=clock))
        return made[-1]

    yield again
    for registry in made:
        registry.close()


@pytest.fixture
def empty(open_again: Callable[[], Registry]) -> Registry:
    return open_again()


@pytest.fixture
def registry(empty: Registry) -> Registry:
    """A registry with three devices and release 0, which the fleet is on."""
    return filled(empty)
