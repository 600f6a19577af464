"""Every effect that an agent has on its disk, counted, so that the n-th is its last or fails.

An effect is an SQL statement, or a write, fsync, rename, removal or new folder outside of SQLite.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.agent import decisions
from clients.agent.store import database
from tests.clients.agent.serving.effects import HOOKED, kill

__all__ = ["FAILURES", "Killed", "Refused"]

FILES: tuple[tuple[Any, str], ...] = (*HOOKED, (decisions, "open"))
WRITING = ("BEGIN", "INSERT", "UPDATE", "DELETE", "CREATE", "COMMIT")
FAILURES: dict[str, tuple[int, str, frozenset[str]]] = {
    "full": (errno.ENOSPC, "database or disk is full", frozenset({"disk-full"})),
    "read-only": (
        errno.EROFS,
        "attempt to write a readonly database",
        frozenset({"read-only"}),
    ),
    # SQLite and the system word it themselves, and do not know that it is a limit.
    "limited": (errno.EFBIG, "", frozenset({"disk-full", "disk-failed", "write-failed"})),
}
"""Number of the system's error, SQLite's words for it, and the codes that name it to people."""


class Killed:
    """Counts effects and kills this process just before the n-th.

    Args:
        at: Number of the effect, from 1; 0 only counts.
    """

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def hook(self, patched: pytest.MonkeyPatch) -> None:
        def traced(path: Path, readonly: bool) -> sqlite3.Connection:
            connection = connected(path, readonly)
            connection.set_trace_callback(lambda text: self._counted("sql", (text,)))
            return connection

        connected = database._connected
        patched.setattr(database, "_connected", traced)
        _hook(patched, self._counted)

    def _counted(self, name: str, args: tuple[Any, ...]) -> None:
        self.count += 1
        if self.count == self.at:
            kill(name, args)


class Refused:
    """Counts effects that write; the n-th fails, or all from it on, until the disk is healed.

    Args:
        how: One of :data:`FAILURES`.
        at: Number of the first effect that fails, from 1; 0 only counts.
        once: Whether only that one fails.
    """

    def __init__(self, how: str, at: int, *, once: bool = False) -> None:
        self.how, self.at, self.once, self.count = how, at, once, 0
        self._number, self._words, self.codes = FAILURES[how]

    def hook(self, patched: pytest.MonkeyPatch) -> None:
        counted = self._counted

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql.startswith(WRITING):
                    counted("sql", (sql,))
                return super().execute(sql, *args)

            def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
                counted("sql", (sql,))
                return super().executemany(sql, *args)

        def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            return original(*args, **kwargs, factory=Connection)

        original = sqlite3.connect
        patched.setattr(sqlite3, "connect", connect)
        _hook(patched, counted)

    def heal(self) -> None:
        """Make the disk whole again."""
        self.at = 0
        if self.how == "limited":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def _counted(self, name: str, args: tuple[Any, ...]) -> None:
        self.count += 1
        if not self.at or self.count < self.at or (self.once and self.count > self.at):
            return
        if self.how == "limited":
            _limit()
            return
        if name == "sql":
            raise sqlite3.OperationalError(self._words)
        if name == "_write_all":
            file, content = args
            file.write(content[: len(content) // 2])
            file.flush()
        raise OSError(self._number, os.strerror(self._number))


def _hook(patched: pytest.MonkeyPatch, counted: Callable[[str, tuple[Any, ...]], None]) -> None:
    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def effect(*args: Any, **kwargs: Any) -> Any:
            counted(name, args)
            return original(*args, **kwargs)

        return effect

    for owner, name in FILES:
        original = getattr(owner, name, None) or open
        patched.setattr(owner, name, counting(name, original), raising=False)


def _limit() -> None:
    """Make the system itself refuse every byte from now on, also to SQLite."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
