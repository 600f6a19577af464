from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from clients.agent.store import Store
from clients.agent.store.database import Database
from clients.agent.store.schema import MIGRATIONS, migrate
from clients.agent.store.store import FILE_NAME
from fleet.errors import StorageError
from tests.clients.agent.store.windows import SHAPE, TRAIN, WITHOUT_PERSONAL, batch, opened

COUNT = 300
PAGE = 4096


def filled(folder: Path) -> Path:
    with opened(folder) as store:
        store.windows.add("ada", "s", batch(COUNT), TRAIN)
        store.labels.range("ada", 10.0, 20.0, "walking", "ada")
        store.outbox.put("p1", 1, b"update")
        store.counters.add({"intake.gaps": 3})
    return folder / FILE_NAME


def check_whole(store: Store) -> int:
    """Every window that is there is one that was put there; returns how many."""
    given, found = batch(COUNT), store.windows.load(SHAPE)
    for start, signal in zip(found.start_s, found.x, strict=True):
        np.testing.assert_array_equal(signal, given.signals[int(start)])
    return len(found.ids)


def overwrite(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize("page", [1, 2, 5, 9, 14, 20])
def test_what_is_whole_survives_a_damaged_page(tmp_path: Path, page: int) -> None:
    path = filled(tmp_path)
    assert path.stat().st_size > 21 * PAGE
    overwrite(path, page * PAGE, b"\xa5" * PAGE)
    with opened(tmp_path) as store:
        assert len(store.notices) == 1
        assert "damaged-20231114T221320Z" in store.notices[0]
        # A leaf takes a few dozen windows with it; the table's root page takes them all.
        assert check_whole(store) >= COUNT // 2 or page < 5
        assert store.windows.add("ada", "s", batch(2, first=900), TRAIN).new == 2
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    with opened(tmp_path) as store:
        assert store.notices == ()


def damage(content: bytes, seed: int) -> bytes:
    """Flip bits, overwrite pages or lose the end, somewhere."""
    random, damaged = np.random.default_rng(seed), bytearray(content)
    for _ in range(int(random.choice([1, 1, 3, 20]))):
        at = int(random.integers(len(damaged) if random.random() < 0.8 else 200))
        if random.random() < 0.5:
            damaged[at] ^= 1 << int(random.integers(8))
        else:
            page = at // PAGE * PAGE
            damaged[page : page + PAGE] = random.bytes(len(damaged[page : page + PAGE]))
    return bytes(damaged[: int(random.integers(len(damaged)))] if seed % 10 == 0 else damaged)


def test_no_damage_stops_a_store_or_passes_for_a_window(tmp_path: Path) -> None:
    content = filled(tmp_path / "whole").read_bytes()
    repaired, refused = 0, set()
    for seed in range(60):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(damage(content, seed))
        try:
            with opened(folder) as store:
                check_whole(store)
                store.windows.add("ada", "s", batch(2, first=900), TRAIN)
                store.forget("ada")
                repaired += len(store.notices)
        except StorageError as error:
            refused.add(error.code)
    assert repaired > 40
    # A flipped bit in the version is not to be told from a later Corefleet.
    assert refused <= {"store-newer"}


@pytest.mark.parametrize("size", [100, PAGE, 10 * PAGE, 15 * PAGE + 7])
def test_a_cut_off_file_is_no_crash_loop(tmp_path: Path, size: int) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with opened(tmp_path) as store:
        assert len(store.notices) == 1
        check_whole(store)
        store.counters.add({"x": 1})


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database at all" * 500)
    with opened(tmp_path) as store:
        assert "kept what was whole: nothing" in store.notices[0]
        assert store.windows.counts() == {}
    aside = list(tmp_path.glob("*.damaged-*"))
    assert [path.read_bytes()[:11] for path in aside] == [b"no database"]


def test_a_lost_table_counts_as_damage(tmp_path: Path) -> None:
    path = filled(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE journal_people")
    connection.close()
    with opened(tmp_path) as store:
        assert "lacks the tables journal_people" in store.notices[0]
        assert check_whole(store) == COUNT
        assert len(store.windows.load(SHAPE, labelled=True).ids) == 10
        assert store.outbox.get("p1") is not None
        assert store.counters.all() == {"intake.gaps": 3}


@pytest.mark.parametrize("step", [1, 2])
def test_a_repair_cut_off_at_any_rename_is_finished_later(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path)
    overwrite(path, 14 * PAGE, b"\xa5" * PAGE)
    left = [step]
    rename = Path.rename

    def cut_off(self: Path, target: Path) -> Path:
        left[0] -= 1
        if not left[0]:
            raise OSError(5, "the power went")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut_off)
        with pytest.raises(StorageError) as caught:
            opened(tmp_path)
        assert caught.value.code == "store-unopenable"
    with opened(tmp_path) as store:
        assert check_whole(store) >= COUNT // 2
    assert not (tmp_path / f"{FILE_NAME}.rebuilt").exists()


def test_a_store_that_others_have_open_is_not_repaired_under_them(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with opened(tmp_path):
        overwrite(path, 14 * PAGE, b"\xa5" * PAGE)
        with pytest.raises(StorageError) as caught:
            opened(tmp_path)
        assert caught.value.code == "store-busy"
    with opened(tmp_path) as store:
        assert len(store.notices) == 1


def test_a_newer_store_is_left_alone(tmp_path: Path) -> None:
    path = filled(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StorageError, match=rf"knows versions up to {len(MIGRATIONS)}") as caught:
        opened(tmp_path)
    assert caught.value.code == "store-newer"
    assert list(tmp_path.glob("*.damaged-*")) == []


def test_another_programs_file_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    with pytest.raises(StorageError) as caught:
        opened(tmp_path)
    assert caught.value.code == "not-a-store"


def test_a_migration_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    known = len(MIGRATIONS)

    def another(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE windows ADD COLUMN note TEXT")

    def failing(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        raise RuntimeError("cut off")

    database = Database(filled(tmp_path))
    try:
        with pytest.raises(RuntimeError):
            migrate(database, (*MIGRATIONS, another, failing))
        assert database.number("PRAGMA user_version") == known
        assert migrate(database, (*MIGRATIONS, another)) == known
        assert database.number("PRAGMA user_version") == known + 1
        assert database.number("SELECT count(note IS NULL) FROM windows") == COUNT
        assert database.number("SELECT count(*) FROM sqlite_master WHERE name = 'half'") == 0
    finally:
        database.close()


def test_a_store_of_the_first_version_keeps_its_windows_and_gains_checkpoints(
    tmp_path: Path,
) -> None:
    connection = sqlite3.connect(filled(tmp_path))
    connection.executescript(
        f"{WITHOUT_PERSONAL} DROP TABLE residual_people; DROP TABLE residuals;"
        "DROP TABLE checkpoint_people; DROP TABLE checkpoints; PRAGMA user_version = 1"
    )
    connection.close()
    with opened(tmp_path) as store:
        assert store.notices == ()
        assert len(store.windows.load(SHAPE).ids) == COUNT
        assert store.checkpoints.put("p1", "w1", b"one", ["ada"])


def test_a_folder_that_cannot_be_made_is_an_error_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        opened(tmp_path / "file" / "state")
    assert caught.value.code == "store-unopenable"
