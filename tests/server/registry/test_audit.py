from __future__ import annotations

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update

from fleet.errors import InputError, StorageError
from server.registry import Head, Registry, chain, tables
from server.standing.policy import FleetPolicy
from tests.server.registry.filled import BASE, COORDINATOR, NOW_S, OPERATOR, key_of, run_round

AUDIT = tables.audit


def unguarded(registry: Registry) -> None:
    """Take the triggers off, as somebody with the database's password could."""

    def drop(connection: Connection) -> None:
        sqlite = registry.database.path is not None
        for name in ("audit_in_order", "audit_keeps_rows", "audit_keeps_text")[
            : 3 if sqlite else 2
        ]:
            connection.execute(text(f"DROP TRIGGER {name}" + ("" if sqlite else " ON audit")))

    registry.database.change(drop)


def test_every_change_leaves_a_row_that_says_who_did_what(registry: Registry) -> None:
    run_round(registry, devices=["ada"])
    rows = registry.audit.rows()
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert [row.verb for row in rows][-3:] == ["round.open", "update.accept", "round.release"]
    assert {row.actor for row in rows} == {OPERATOR, COORDINATOR}
    last = rows[-1]
    assert (last.subject, last.at_s) == ("round 1", NOW_S)
    assert last.detail["digest"] == registry.releases.get(1).digest
    assert registry.audit.verify() == Head(last.seq, last.hash) == registry.audit.head()


def test_an_empty_audit_is_whole(empty: Registry) -> None:
    assert empty.audit.verify() == Head(0, chain.NOTHING)


@pytest.mark.parametrize(
    "statement",
    [
        update(AUDIT).where(AUDIT.c.seq == 2).values(actor="nobody"),
        delete(AUDIT).where(AUDIT.c.seq == 2),
        insert(AUDIT).values(
            seq=2, at_s=0.0, actor="a", verb="v", subject="s", detail="{}", previous="", hash="h"
        ),
        insert(AUDIT).values(
            seq=99, at_s=0.0, actor="a", verb="v", subject="s", detail="{}", previous="", hash="h"
        ),
    ],
    ids=["update", "delete", "insert-between", "insert-far"],
)
def test_the_database_itself_keeps_the_audit_as_it_is(
    registry: Registry, statement: object
) -> None:
    head = registry.audit.head()
    with pytest.raises(StorageError) as caught:
        registry.database.change(lambda connection: connection.execute(statement))  # type: ignore[call-overload]
    assert caught.value.code == "registry-conflict"
    assert registry.audit.verify() == head


def test_replacing_a_row_is_deleting_it(registry: Registry) -> None:
    if registry.database.path is None:
        statement = "TRUNCATE audit"
    else:
        statement = (
            "INSERT OR REPLACE INTO audit SELECT seq, at_s, 'nobody', verb, subject, detail,"
            " previous, hash FROM audit WHERE seq = 2"
        )
    with pytest.raises(StorageError):
        registry.database.change(lambda connection: connection.execute(text(statement)))
    registry.audit.verify()


@pytest.mark.parametrize(
    "column", [each.name for each in AUDIT.c if each.name not in ("seq", "hash")]
)
def test_a_changed_row_is_named(registry: Registry, column: str) -> None:
    unguarded(registry)
    values = {"at_s": NOW_S + 1, "detail": "{}", "previous": "0" * 64}
    change = update(AUDIT).where(AUDIT.c.seq == 3).values({column: values.get(column, "x")})
    registry.database.change(lambda connection: connection.execute(change))
    with pytest.raises(StorageError, match="row 3 ") as caught:
        registry.audit.verify()
    assert caught.value.code == "audit-broken"


def test_a_missing_row_is_named(registry: Registry) -> None:
    unguarded(registry)
    registry.database.change(
        lambda connection: connection.execute(delete(AUDIT).where(AUDIT.c.seq == 3))
    )
    with pytest.raises(StorageError, match="row 3 is missing"):
        registry.audit.verify()


def test_rows_that_were_cut_off_are_missed_by_a_head_that_was_written_down(
    registry: Registry,
) -> None:
    written, last = registry.audit.rows()[2], registry.audit.head()
    assert registry.audit.verify(Head(written.seq, written.hash)) == last
    unguarded(registry)
    registry.database.change(
        lambda connection: connection.execute(delete(AUDIT).where(AUDIT.c.seq == last.seq))
    )
    assert registry.audit.verify().seq == last.seq - 1
    with pytest.raises(StorageError, match=f"row {last.seq} is missing"):
        registry.audit.verify(last)
    registry.releases.promote(0, actor="other")
    registry.devices.revoke("ada", why="hidden", actor="other")
    with pytest.raises(StorageError, match=f"row {last.seq} is another one"):
        registry.audit.verify(last)


def test_a_row_that_was_forged_with_its_hash_is_not_followed_by_the_next(
    registry: Registry,
) -> None:
    unguarded(registry)

    def forge(connection: Connection) -> None:
        row = connection.execute(select(AUDIT).where(AUDIT.c.seq == 3)).one()._asdict()
        row |= {"actor": "nobody"}
        del row["hash"]
        forged = {"actor": "nobody", "hash": chain.hash_of(**row)}
        connection.execute(update(AUDIT).where(AUDIT.c.seq == 3).values(**forged))

    registry.database.change(forge)
    with pytest.raises(StorageError, match="row 4 does not follow"):
        registry.audit.verify()


def test_the_audit_is_read_page_by_page(registry: Registry) -> None:
    last = registry.audit.head().seq
    assert [row.seq for row in registry.audit.rows(newest=2)] == [last - 1, last]
    older = registry.audit.rows(newest=2, before=last - 1)
    assert [row.seq for row in older] == [last - 3, last - 2]
    assert {row.subject for row in registry.audit.rows(subject="ada")} == {"ada"}
    for newest in (0, 1001):
        with pytest.raises(InputError):
            registry.audit.rows(newest=newest)


def pinned_by_tag(registry: Registry, *names: str) -> None:
    registry.audit._database.change(
        lambda connection: chain.append(
            connection, NOW_S, OPERATOR, "device.pin", "tag ward=3", {"devices": list(names)}
        )
    )


def test_one_change_of_many_devices_is_found_by_each_of_them(registry: Registry) -> None:
    registry.devices.enroll("b%b", key_of("b%b"), actor=OPERATOR)
    pinned_by_tag(registry, "ada", "bob")
    for name in ("ada", "bob", "tag ward=3"):
        assert registry.audit.rows(subject=name)[-1].verb == "device.pin"
    for name in ("cyd", "b%b"):
        assert [row.verb for row in registry.audit.rows(subject=name)] == ["device.enroll"]


def test_a_device_is_not_found_by_what_is_only_named_like_it(registry: Registry) -> None:
    registry.policy.set(FleetPolicy(base=BASE.digest, tags=("ada",)), actor=OPERATOR)
    registry.devices.tag("bob", add=["ada"], actor=OPERATOR)
    pinned_by_tag(registry, "Ada", 'a"da', "adam")
    assert [row.verb for row in registry.audit.rows(subject="ada")] == ["device.enroll"]
    assert registry.audit.rows(subject='a"da')[0].subject == "tag ward=3"


def test_rounds_that_asked_a_device_do_not_bury_what_was_done_to_it(registry: Registry) -> None:
    run_round(registry)
    pinned_by_tag(registry, "ada")
    verbs = [row.verb for row in registry.audit.rows(subject="ada")]
    assert verbs == ["device.enroll", "device.pin"]
    assert "update.accept" in [row.verb for row in registry.audit.rows(subject="round 1")]


def test_a_page_about_a_device_has_its_newest_rows_in_order(registry: Registry) -> None:
    for _ in range(3):
        pinned_by_tag(registry, "bob")
        pinned_by_tag(registry, "ada", "bob")
    (first, last) = registry.audit.rows(subject="ada", newest=2)
    assert (last.seq, last.seq - first.seq) == (registry.audit.head().seq, 2)
    (earlier,) = registry.audit.rows(subject="ada", newest=1, before=first.seq)
    assert earlier.seq == first.seq - 2
