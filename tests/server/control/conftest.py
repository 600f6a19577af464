from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.federate.releases import Release
from server.control.reach import REGISTRY
from server.control.remote import RemoteVerbs
from server.control.roles import Role
from server.control.service import Server, serve
from server.control.verbs.fleet import Fleet
from server.registry import Registry, open_registry
from server.service.config import ServerConfig, save_config
from server.service.folder import ServerFolder, write_private
from tests.server.control.controlling import (
    AUTHORITY,
    SERVER,
    fleet_of,
    known,
    lived_in,
    trust,
)
from tests.server.registry.filled import Clock


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a commit waits for its disk."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def template(memory: Path) -> tuple[Path, list[Release], float]:
    """A registry that was lived in, its releases, and the time that it is there."""
    path, clock = memory / "template.sqlite", Clock()
    with open_registry(path, clock=clock) as registry:
        releases = lived_in(registry, clock)
    return path, releases, clock.now_s


@pytest.fixture
def clock(template: tuple[Path, list[Release], float]) -> Clock:
    clock = Clock()
    clock.now_s = template[2]
    return clock


@pytest.fixture
def file(memory: Path, template: tuple[Path, list[Release], float]) -> Iterator[Path]:
    """The file of a registry of three devices, two rounds and three releases."""
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(shutil.copyfile(template[0], Path(name) / "registry.sqlite"))


@pytest.fixture
def registry(file: Path, clock: Clock) -> Iterator[Registry]:
    with open_registry(file, clock=clock) as registry:
        yield registry


@pytest.fixture
def releases(template: tuple[Path, list[Release], float]) -> list[Release]:
    return template[1]


@pytest.fixture
def fleet(registry: Registry, clock: Clock, file: Path) -> Fleet:
    return fleet_of(registry, clock, file.parent)


@pytest.fixture
def server(fleet: Fleet) -> Iterator[Server]:
    with serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate) as server:
        yield server


@pytest.fixture
def admin(fleet: Fleet, server: Server) -> Iterator[RemoteVerbs]:
    own = known(fleet, trust(Role.admin))
    with RemoteVerbs(f"127.0.0.1:{server.port}", own, wait=lambda _: None) as verbs:
        yield verbs


@pytest.fixture
def folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerFolder:
    """A server's folder with a registry that was lived in; no SuperLink runs."""
    folder = ServerFolder(tmp_path / "server")
    folder.make()
    save_config(ServerConfig(), folder)
    for path, content in (
        (folder.authority, AUTHORITY.certificate),
        (folder.authority_key, AUTHORITY.key),
        (folder.certificate, SERVER.certificate),
        (folder.key, SERVER.key),
    ):
        write_private(path, content)
    shutil.copyfile(file, folder.path / REGISTRY)
    monkeypatch.setenv("COREFLEET_SERVER", str(folder.path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COREFLEET_CONTROL", raising=False)
    return folder


@pytest.fixture
def kept(folder: ServerFolder) -> Iterator[Registry]:
    """The same registry, to look into."""
    with open_registry(folder.path / REGISTRY, clock=Clock()) as registry:
        yield registry
