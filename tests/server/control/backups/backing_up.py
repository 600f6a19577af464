from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from server.control.backups.restoring import Staged, staged
from server.control.backups.writing import write_archive
from server.registry import Registry
from server.service.folder import ServerFolder, write_private
from tests.server.control.controlling import SIGNING

__all__ = ["AT", "LATER", "Take", "elsewhere", "home", "put_back", "snapshot", "take"]

AT = datetime(2026, 11, 21, 22, 0, tzinfo=timezone.utc)
LATER = AT + timedelta(seconds=1)
Take = Callable[..., Path]


@pytest.fixture
def home(folder: ServerFolder) -> ServerFolder:
    """A server with keys of every kind, and the SuperLink's nodes."""
    write_private(folder.release_key, SIGNING)
    write_private(folder.superexec_secret, b"secret")
    with closing(sqlite3.connect(folder.database)) as nodes:
        nodes.execute("PRAGMA journal_mode = WAL").fetchall()
        nodes.execute("CREATE TABLE node (key TEXT)")
        nodes.execute("INSERT INTO node VALUES ('ada')")
        nodes.commit()
    return folder


@pytest.fixture
def take(home: ServerFolder, kept: Registry, tmp_path: Path) -> Take:
    """Back the server up."""

    def take(name: str = "one.tar", **wanted: bool) -> Path:
        path = tmp_path / name
        write_archive(kept, home, path, AT, **wanted)
        return path

    return take


@pytest.fixture
def elsewhere(tmp_path: Path) -> ServerFolder:
    return ServerFolder(tmp_path / "elsewhere")


def put_back(file: Path, folder: ServerFolder, now: datetime = AT) -> tuple[Staged, Path | None]:
    with staged(file, folder) as found:
        return found, found.place("root", now)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file() and not each.name.startswith(("run.lock", "registry.sqlite-"))
    }
