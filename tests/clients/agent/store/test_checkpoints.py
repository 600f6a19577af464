from __future__ import annotations

from pathlib import Path

from clients.agent.store import checkpoints
from tests.clients.agent.store.windows import TRAIN, batch, opened


def test_a_checkpoint_is_found_by_its_plan_and_windows_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.checkpoints.put("p1", "w1", b"half way", ["ada"])
    with opened(tmp_path) as store:
        assert store.checkpoints.get("p1", "w1") == b"half way"
        assert store.checkpoints.get("p1", "w2") is None
        assert store.checkpoints.get("p2", "w1") is None
        assert store.checkpoints.plan() == "p1"


def test_the_newest_checkpoint_takes_the_place_of_any_other(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.checkpoints.put("p1", "w1", b"one", ["ada"])
        store.checkpoints.put("p2", "w1", b"two", ["ben"])
        assert store.checkpoints.get("p1", "w1") is None
        assert store.checkpoints.get("p2", "w1") == b"two"
        assert store.checkpoints.clear()
        assert not store.checkpoints.clear()
        assert store.checkpoints.plan() is None


def test_a_checkpoint_that_is_too_large_leaves_the_one_before(tmp_path: Path) -> None:
    too_large = bytes(checkpoints.LARGEST_CHECKPOINT_BYTES + 1)
    with opened(tmp_path) as store:
        store.checkpoints.put("p1", "w1", b"one", ["ada"])
        assert not store.checkpoints.put("p1", "w1", too_large, ["ada"])
        assert store.checkpoints.get("p1", "w1") == b"one"


def test_damaged_bytes_are_no_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.checkpoints.put("p1", "w1", b"one", ["ada"])
        store.database.connection.execute("UPDATE checkpoints SET payload = x'00'")
        assert store.checkpoints.get("p1", "w1") is None


def test_forgetting_a_person_drops_the_checkpoint_that_their_windows_shaped(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(2), TRAIN)
        store.checkpoints.put("p1", "w1", b"of ada and ben", ["ada", "ben"])
        assert store.forget("cora").deleted["checkpoints"] == 0
        assert store.forget("ada").deleted["checkpoints"] == 1
        assert store.checkpoints.plan() is None
        assert store.windows.unknown(["ada", "ben"]) == ["ada", "ben"]


def test_labels_are_counted_from_a_mark_on(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(4), TRAIN)
        assert store.labels.since((0, 0)) == 0
        store.labels.range("ada", 0.0, 2.0, "walking", "ada")
        mark = store.labels.mark()
        assert store.labels.since(mark) == 0
        assert store.labels.since((0, 0)) == 3  # two windows and one statement
        store.labels.window(3, "sitting", "ada")
        assert store.labels.since(mark) == 1
        store.labels.window(3, None, "ada")  # taking one back teaches nothing
        assert store.labels.since(mark) == 1
