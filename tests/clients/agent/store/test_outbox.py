from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from clients.agent.store import Caps, open_store, outbox, small
from clients.agent.store.records import JournalEntry, Outgoing, Position
from fleet.errors import InputError
from tests.clients.agent.store.windows import NOW_S, opened


def test_the_first_answer_to_a_plan_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.outbox.put("p1", 3, b"first", ["ada"])
        assert not store.outbox.put("p1", 3, b"second", ["ben"])
    with opened(tmp_path) as store:
        assert store.outbox.get("p1") == Outgoing("p1", 3, b"first", NOW_S, None)
        assert store.outbox.get("p2") is None


def test_a_delivered_answer_can_be_asked_for_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.outbox.put("p1", 3, b"first")
        store.outbox.put("p2", 4, b"next")
        assert store.outbox.mark_delivered("p1")
        assert not store.outbox.mark_delivered("p1")
        assert not store.outbox.mark_delivered("never")
        assert store.outbox.get("p1") == Outgoing("p1", 3, b"first", NOW_S, NOW_S)
        assert [one.plan for one in store.outbox.waiting()] == ["p2"]


def test_delivered_payloads_make_room_before_waiting_ones(tmp_path: Path) -> None:
    with opened(tmp_path, Caps(outbox_bytes=30)) as store:
        for number in range(3):
            store.outbox.put(f"p{number}", number, bytes(10))
        store.outbox.mark_delivered("p1")
        store.outbox.put("p3", 3, bytes(10))
        assert [one.plan for one in store.outbox.waiting()] == ["p0", "p2", "p3"]
        assert store.outbox.get("p1") == Outgoing("p1", 1, None, NOW_S, NOW_S)
        store.outbox.put("p4", 4, bytes(10))
        assert [one.plan for one in store.outbox.waiting()] == ["p2", "p3", "p4"]


def test_an_update_beyond_the_cap_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, Caps(outbox_bytes=30)) as store:
        with pytest.raises(InputError) as caught:
            store.outbox.put("p", 1, bytes(31))
        assert caught.value.code == "update-too-large"


def test_a_payload_that_rotted_is_no_answer(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.outbox.put("p1", 3, b"first")
        with store.transaction() as connection:
            connection.execute("UPDATE outbox SET payload = x'00'")
        assert store.outbox.get("p1") is None
        assert store.outbox.waiting() == ()


def test_the_journal_keeps_what_happened_in_order(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.journal.add("p1", 3, "started", ["ben", "ada"], {"epochs": 2})
        store.journal.add("p2", 4, "refused")
        store.journal.add("p1", 3, "finished")
        assert store.journal.entries("p1") == (
            JournalEntry("p1", 3, "started", NOW_S, ("ada", "ben"), {"epochs": 2}),
            JournalEntry("p1", 3, "finished", NOW_S),
        )
        assert [one.event for one in store.journal.entries(newest=2)] == ["refused", "finished"]


def test_the_journal_drops_its_oldest_entries(tmp_path: Path) -> None:
    with opened(tmp_path, Caps(journal_bytes=300)) as store:
        for number in range(9):
            store.journal.add("p", number, "started", ["ada"])
        assert [one.round for one in store.journal.entries()] == [5, 6, 7, 8]


def test_counters_values_and_positions_come_back(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.counters.add({"intake.gaps": 2, "none": 0})
        store.counters.add({"intake.gaps": 3})
        store.state.put("served", {"release": 4})
        store.state.put("served", {"release": 5})
        store.positions.put("ada", "s", Position(7, b"x", "{}"))
    with opened(tmp_path) as store:
        assert store.counters.all() == {"intake.gaps": 5}
        assert store.state.get("served") == {"release": 5}
        assert store.state.get("never", 1) == 1
        assert store.positions.get("ada", "s") == Position(7, b"x", "{}")
        assert store.positions.get("ben", "s") is None


def test_what_is_remembered_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "LARGEST_SOURCES", 3)
    monkeypatch.setattr(outbox, "LARGEST_MEMORY", 3)
    clock = itertools.count(1.0).__next__
    with open_store(tmp_path, clock=clock, caps=Caps(outbox_bytes=1)) as store:
        for number in range(6):
            store.positions.put("ada", f"s{number}", Position(number, b"", ""))
            store.outbox.put(f"p{number}", number, b"x")
            store.outbox.mark_delivered(f"p{number}")
        kept = [number for number in range(6) if store.positions.get("ada", f"s{number}")]
        assert kept == [3, 4, 5]
        known = [store.outbox.get(f"p{number}") for number in range(6)]
        assert [one.plan for one in known if one] == ["p3", "p4", "p5"]


def test_a_failed_block_keeps_nothing_of_it(tmp_path: Path) -> None:
    with opened(tmp_path) as store:

        def both() -> None:
            with store.transaction():
                store.counters.add({"x": 1})
                store.state.put("y", float("nan"))

        with pytest.raises(ValueError, match="JSON"):
            both()
        assert store.counters.all() == {}
        store.counters.add({"x": 1})
        assert store.counters.all() == {"x": 1}
