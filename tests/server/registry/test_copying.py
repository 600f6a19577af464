from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from server.registry.copying import copy_database


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "one.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("CREATE TABLE t (n INTEGER)")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(1000)])
        connection.commit()
    return path


def test_a_copy_is_one_whole_file_while_somebody_writes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(source)) as writer:
        writer.execute("INSERT INTO t VALUES (5000)")  # not committed
        copy_database(source, target)
        writer.rollback()
    assert [each.name for each in tmp_path.glob("copy*")] == ["copy.sqlite"]
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT count(*), max(n) FROM t").fetchone() == (1000, 999)


def test_who_keeps_a_database_to_himself_is_waited_for_within_the_limit(
    source: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(source, isolation_level=None)) as greedy:
        greedy.execute("PRAGMA journal_mode = DELETE").fetchall()
        greedy.execute("BEGIN EXCLUSIVE")
        ticks = count(0.0, 5.0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            copy_database(source, tmp_path / "copy.sqlite", 0.1, lambda: next(ticks))
        greedy.execute("ROLLBACK")
    copy_database(source, tmp_path / "copy.sqlite")
