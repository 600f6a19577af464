from __future__ import annotations

from pathlib import Path

from clients.agent.store import Caps
from clients.agent.store.records import Position
from tests.clients.agent.store.windows import SHAPE, TRAIN, batch, opened


def filled(folder: Path) -> None:
    with opened(folder) as store:
        for number, person in enumerate(("ada", "ben")):
            store.windows.add(person, "s", batch(4, seed=number), TRAIN)
            store.labels.range(person, 0.0, 2.0, f"secret-{person}", person)
            store.positions.put(person, "s", Position(7, b"x", f"tail-{person}"))
        store.windows.pin([1, 5])
        store.journal.add("p1", 1, "started", ["ada", "ben"])
        store.journal.add("p2", 2, "started", ["ben"])
        store.outbox.put("p1", 1, b"update of both", ["ada", "ben"])
        store.outbox.put("p2", 2, b"update of ben", ["ben"])
        store.outbox.put("p3", 3, b"waiting update", ["ada"])
        store.outbox.mark_delivered("p1")
        store.outbox.mark_delivered("p2")


def test_forgetting_deletes_all_of_one_person_and_says_what_the_server_holds(
    tmp_path: Path,
) -> None:
    filled(tmp_path)
    with opened(tmp_path) as store:
        done = store.forget("ada")
        assert done.deleted == {
            "windows": 4,
            "labels": 1,
            "replay": 1,
            "journal": 1,
            "updates": 1,
            "sources": 1,
            "people": 1,
            "checkpoints": 0,
            "residuals": 0,
            "fisher information": 0,
            "personal cores": 0,
            "personal checkpoints": 0,
            "learned": 0,
            "damaged copies": 0,
        }
        assert done.server_holds == (("p1", 1),)
        assert done.cleared
        assert store.windows.load(SHAPE).people == ("ben",) * 4
        assert [one.plan for one in store.journal.entries()] == ["p2"]
        assert store.outbox.waiting() == ()
        kept = store.outbox.get("p2")
        assert kept is not None
        assert kept.payload == b"update of ben"
        assert store.positions.get("ben", "s") is not None


def test_forgotten_bytes_are_gone_from_every_file(tmp_path: Path) -> None:
    filled(tmp_path)
    signal = batch(4, seed=0).signals[0].tobytes()
    secrets = (signal[:32], b"secret-ada", b"tail-ada", b"update of both", b"waiting update")
    with opened(tmp_path) as store:
        before = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert all(secret in before for secret in secrets)
        store.forget("ada")
        after = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert [secret for secret in secrets if secret in after] == []
        assert batch(4, seed=1).signals[0].tobytes()[:32] in after


def test_damaged_copies_are_deleted_because_nobody_can_tell_whom_they_hold(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"x" * 4096 + path.read_bytes()[4096:])
    with opened(tmp_path) as store:
        assert len(list(tmp_path.glob("*.damaged-*"))) == 1
        assert store.forget("ada").deleted["damaged copies"] == 1
        assert list(tmp_path.glob("*.damaged-*")) == []


def test_someone_unknown_leaves_everything_as_it_is(tmp_path: Path) -> None:
    filled(tmp_path)
    with opened(tmp_path, Caps()) as store:
        done = store.forget("cleo")
        assert set(done.deleted.values()) == {0}
        assert done.server_holds == ()
        assert len(store.windows.load(SHAPE).ids) == 8
