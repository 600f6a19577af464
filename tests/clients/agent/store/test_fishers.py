from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from clients.agent.store import fishers
from fleet.errors import StorageError
from tests.clients.agent.store.windows import TRAIN, batch, opened


def test_one_is_found_by_its_key_with_its_people_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.fishers.put("base/frame", b"1", ["ada", "ben", "ada"])
    with opened(tmp_path) as store:
        assert store.fishers.get("base/frame") == (b"1", {"ada", "ben"})
        assert store.fishers.get("base/other") is None


def test_one_of_another_base_takes_the_place_of_any_other(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.fishers.put("one", b"1", ["ada"])
        store.fishers.put("two", b"2", ["ben"])
        assert store.fishers.get("one") is None
        assert store.fishers.get("two") == (b"2", {"ben"})
        assert store.fishers.clear()
        assert not store.fishers.clear()
        assert store.database.number("SELECT count(*) FROM fisher_people") == 0


def test_one_that_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fishers, "LARGEST_FISHER_BYTES", 3)
    with opened(tmp_path) as store:
        assert store.fishers.put("one", b"123", ["ada"])
        assert not store.fishers.put("one", b"1234", ["ada"])
        assert store.fishers.get("one") is None


@pytest.mark.parametrize("payload", ["x'00'", "'1'"])
def test_damaged_bytes_are_said(tmp_path: Path, payload: str) -> None:
    with opened(tmp_path) as store:
        store.fishers.put("one", b"1", ["ada"])
        store.database.connection.execute(f"UPDATE fishers SET payload = {payload}")
        with pytest.raises(StorageError) as caught:
            store.fishers.get("one")
        assert caught.value.code == "fisher-damaged"


def test_what_fails_in_the_same_transaction_leaves_the_one_before(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.fishers.put("one", b"before", ["ada"])

        def fail() -> None:
            with store.transaction():
                store.fishers.put("one", b"after", ["ben"])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert store.fishers.get("one") == (b"before", {"ada"})


def test_forgetting_a_person_drops_what_their_windows_shaped_and_nothing_else(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(2), TRAIN)
        store.windows.add("cora", "s", batch(2, seed=1), TRAIN)
        store.fishers.put("one", b"of both", ["ada", "ben"])
        assert store.forget("cora").deleted["fisher information"] == 0
        assert store.fishers.get("one") is not None
        assert store.forget("ada").deleted["fisher information"] == 1
        assert store.fishers.get("one") is None


def test_a_store_of_the_fourth_version_keeps_its_residual_and_gains_a_place(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.residuals.put("one", b"lost", ["ada"])
        path = store.database.path
    connection = sqlite3.connect(path)
    connection.executescript(
        "DROP TABLE fisher_people; DROP TABLE fishers; PRAGMA user_version = 4"
    )
    connection.close()
    with opened(tmp_path) as store:
        assert store.residuals.get("one") == b"lost"
        assert store.fishers.put("one", b"1", ["ada"])
