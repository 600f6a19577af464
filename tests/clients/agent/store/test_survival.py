from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.agent.store import database as database_module
from clients.agent.store.store import FILE_NAME
from fleet.errors import StorageError
from tests.clients.agent.store.windows import SHAPE, TRAIN, batch, opened

ROOT = Path(__file__).resolve().parents[4]
KILLED = "tests.clients.agent.store.killed"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: what a kill spares does not depend on the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def test_every_acknowledged_write_survives_a_kill_at_every_statement(folder: Path) -> None:
    outcome = json.loads(run("-m", KILLED, "killed", str(folder)))
    assert outcome["ends"][:-1] == [-signal.SIGKILL] * (len(outcome["ends"]) - 1)
    assert len(outcome["ends"]) > 80
    assert outcome["acknowledged"][-1] == "forgotten"


def test_every_acknowledged_write_survives_a_refused_one(folder: Path) -> None:
    outcome = json.loads(run("-m", KILLED, "refused", str(folder)))
    assert set(outcome["ends"][:-1]) == {2}
    assert len(outcome["ends"]) > 10
    assert outcome["acknowledged"][-1] == "forgotten"


def test_a_repair_that_is_killed_is_done_again_or_finished(folder: Path) -> None:
    outcome = json.loads(run("-m", KILLED, "repairing", str(folder)))
    assert set(outcome["ends"][:-1]) == {-signal.SIGKILL}
    assert len(outcome["ends"]) > 20


def test_a_full_disk_is_an_error_and_costs_nothing_acknowledged(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(10), TRAIN)
        connection = store.database.connection
        pages = store.database.number("PRAGMA page_count")
        connection.execute(f"PRAGMA max_page_count = {pages + 4}").fetchall()
        kept, refused = 10, None
        while refused is None and kept < 1000:
            try:
                store.windows.add("ada", "s", batch(10, first=kept), TRAIN)
                kept += 10
            except StorageError as error:
                refused = error
        assert refused is not None
        assert refused.code == "disk-full"
        assert "nothing of this write was kept" in refused.message
        assert len(store.windows.load(SHAPE).ids) == kept
        with pytest.raises(StorageError):
            store.outbox.put("p", 1, bytes(100_000))
        connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        store.windows.add("ada", "s", batch(10, first=kept), TRAIN)
    with opened(tmp_path) as store:
        found = store.windows.load(SHAPE)
        assert kept > 10
        assert found.start_s.tolist() == list(range(kept + 10))
        assert store.notices == ()


def test_a_disk_that_may_not_be_written_is_an_error_with_a_message(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.counters.add({"x": 1})
        store.database.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageError) as caught:
            store.counters.add({"x": 1})
        assert caught.value.code == "read-only"
        assert store.counters.all() == {"x": 1}


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EROFS, "read-only"), (errno.ENOSPC, "disk-full"), (errno.EIO, "store-unopenable")],
)
def test_a_disk_that_refuses_the_folder_is_an_error_with_a_message(
    tmp_path: Path, number: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("clients.agent.store.lease.os.open", refused)
    with pytest.raises(StorageError, match=re.escape(str(tmp_path))) as caught:
        opened(tmp_path)
    assert caught.value.code == code
    assert caught.value.hint


def test_waiting_for_another_writer_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.05)
    with opened(tmp_path) as first, opened(tmp_path) as second:
        with first.transaction(), pytest.raises(StorageError) as caught:
            second.counters.add({"x": 1})
        assert caught.value.code == "store-busy"
        second.counters.add({"x": 1})


def test_threads_share_one_writer(tmp_path: Path) -> None:
    with opened(tmp_path) as store:

        def add(number: int) -> None:
            for first in range(5):
                store.windows.add(f"person {number}", "s", batch(2, first=2 * first), TRAIN)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(store.windows.load(SHAPE).ids) == 40


def test_a_write_is_flushed_and_logged_ahead(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        number = store.database.number
        assert number("PRAGMA synchronous") == 2
        assert number("PRAGMA foreign_keys") == 1
        assert number("PRAGMA secure_delete") == 1
        assert number("PRAGMA auto_vacuum") == 2
        assert (tmp_path / f"{FILE_NAME}-wal").exists()


def test_store_and_intake_load_no_torch_and_no_flower() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("store", "intake")
        for path in sorted((ROOT / "clients" / "agent" / package).glob("*.py"))
        if path.name != "__init__.py"
    ]
    names = ", ".join([*modules, "clients.agent.cli.data"])
    loaded = json.loads(
        run("-c", f"import json, sys, {names}; print(json.dumps(sorted(sys.modules)))")
    )
    assert "clients.agent.intake.stream" in loaded
    assert {name.split(".")[0] for name in loaded} & {"torch", "flwr", "grpc", "scipy"} == set()
