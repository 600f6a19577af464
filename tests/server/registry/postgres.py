"""A real PostgreSQL on a Unix socket for tests: on PATH, Debian's, or `make test-services`'s."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from server.registry import open_registry

ROOT = Path(__file__).parents[3]
FETCHED = ROOT / ".services" / "postgresql" / "root"
ABSENT = "no PostgreSQL here; `make test-services` fetches one and runs all tests that need it"
DEADLINE_S = 60.0
ROOM_BYTES = 1 << 30
PACE = threading.Event()  # never set: waiting for it paces what asks again and again
# Nothing of these tests outlives the process, so nothing waits for a disk.
SETTINGS = ("fsync=off", "full_page_writes=off", "listen_addresses=", "max_connections=40")
TEMPLATE = "corefleet_template"


def program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found += sorted(FETCHED.glob("usr/lib/postgresql/*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, found), *os.get_exec_path()]))


def environment() -> dict[str, str]:
    folders = {str(path.parent) for path in FETCHED.glob("usr/lib/**/*.so*")}
    quiet = {"LC_ALL": "C", "TZ": "UTC"}
    return {**os.environ, **quiet, "LD_LIBRARY_PATH": os.pathsep.join(sorted(folders))}


def somebody() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then it runs as somebody who may do nothing."""
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Postgres:
    """A database server in a folder of its own; each test gets a database of its own."""

    def __init__(self, folder: Path) -> None:
        self._numbers = itertools.count(1)
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        if who := somebody():
            os.chown(folder, who["user"], who["group"])
        self._run("initdb", "--username=fleet", "--auth=trust", "--no-sync", "--encoding=UTF8")

    def start(self) -> None:
        settings = [f"--{each}" for each in (*SETTINGS, f"unix_socket_directories={self.folder}")]
        with open(self.folder.parent / "postgres.log", "ab") as log:
            self._process = subprocess.Popen(
                [_needed("postgres"), "-D", str(self.folder / "data"), *settings],
                cwd="/",
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **somebody(),
            )
        end_s = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert time.monotonic() < end_s, f"no PostgreSQL after {DEADLINE_S:g} s"
            PACE.wait(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once, as when it crashes
            try:
                self._process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def url(self, name: str) -> str:
        return f"postgresql://fleet@/{name}?host={self.folder}"

    def fresh(self, template: str = TEMPLATE) -> str:
        """Make a database; return its URL."""
        name = f"corefleet_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url: str) -> None:
        name = url.partition("?")[0].rpartition("/")[2]
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def prepare(self) -> None:
        """Make the registry that fresh ones are copies of."""
        self._execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
        open_registry(self.url(TEMPLATE), clock=lambda: 0.0).close()

    def _execute(self, statement: str) -> None:
        url = self.url("postgres").replace("postgresql:", "postgresql+psycopg:")
        engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(statement))

    def _answers(self) -> bool:
        assert self._process is not None
        log = self.folder.parent / "postgres.log"
        assert self._process.poll() is None, log.read_text()
        try:
            self._execute("SELECT 1")
        except OperationalError:
            return False
        return True

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [_needed(name), "-D", str(self.folder / "data"), *arguments],
            cwd="/",
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            **somebody(),
        )
        assert done.returncode == 0, done.stderr


def _needed(name: str) -> str:
    found = program(name)
    if found is None:
        pytest.skip(ABSENT)
    return found


def roomy() -> Path | None:
    """A folder in memory where there is one that is large enough."""
    memory = Path("/dev/shm")
    there = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM_BYTES
    return memory if there else None


@contextmanager
def running() -> Iterator[Postgres]:
    # Not below pytest's folder: the user that the server runs as may not enter it.
    with tempfile.TemporaryDirectory(prefix="corefleet-pg-", dir=roomy()) as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "server"
        folder.mkdir()
        server = Postgres(folder)
        try:
            server.start()
            server.prepare()
            yield server
        finally:
            server.stop()
