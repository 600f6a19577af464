from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from clients.agent.store import residuals
from tests.clients.agent.store.windows import TRAIN, WITHOUT_PERSONAL, batch, opened


def test_a_residual_is_found_by_its_key_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.residuals.put("base/frame", b"lost", ["ada"])
    with opened(tmp_path) as store:
        assert store.residuals.get("base/frame") == b"lost"
        assert store.residuals.get("base/other") is None


def test_a_residual_of_another_base_takes_the_place_of_any_other(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.residuals.put("one", b"1", ["ada"])
        store.residuals.put("two", b"2", ["ben"])
        assert store.residuals.get("one") is None
        assert store.residuals.get("two") == b"2"
        assert store.forget("ada").deleted["residuals"] == 0
        assert store.residuals.clear()
        assert not store.residuals.clear()


def test_a_residual_that_is_too_large_is_lost_and_so_is_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residuals, "LARGEST_RESIDUAL_BYTES", 3)
    with opened(tmp_path) as store:
        assert store.residuals.put("one", b"123", ["ada"])
        # The one before was sent with the update that this one belongs to.
        assert not store.residuals.put("one", b"1234", ["ada"])
        assert store.residuals.get("one") is None


def test_damaged_bytes_are_no_residual(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.residuals.put("one", b"1", ["ada"])
        store.database.connection.execute("UPDATE residuals SET payload = x'00'")
        assert store.residuals.get("one") is None


def test_what_fails_in_the_same_transaction_leaves_the_residual_before(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.residuals.put("one", b"before", ["ada"])

        def fail() -> None:
            with store.transaction():
                store.residuals.put("one", b"after", ["ben"])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert store.residuals.get("one") == b"before"


def test_forgetting_a_person_drops_a_residual_that_their_windows_ever_shaped(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(2), TRAIN)
        store.residuals.put("one", b"of ada", ["ada"])
        store.residuals.put("one", b"of ben, and of ada before", ["ben"])
        assert store.forget("cora").deleted["residuals"] == 0
        assert store.forget("ada").deleted["residuals"] == 1
        assert store.residuals.get("one") is None


def test_a_store_of_the_second_version_keeps_its_checkpoint_and_gains_residuals(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.checkpoints.put("p1", "w1", b"half way", ["ada"])
        path = store.database.path
    connection = sqlite3.connect(path)
    connection.executescript(
        f"{WITHOUT_PERSONAL} DROP TABLE residual_people; DROP TABLE residuals;"
        "PRAGMA user_version = 2"
    )
    connection.close()
    with opened(tmp_path) as store:
        assert store.checkpoints.get("p1", "w1") == b"half way"
        assert store.residuals.put("one", b"1", ["ada"])
