from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import update

from fleet.errors import FleetError, StorageError
from fleet.federate.releases import Release
from fleet.federate.signing import key_id, make_key, public_of, sign
from server.control import requests as r
from server.control.verbs.fleet import Fleet
from server.registry import Registry, tables
from tests.server.control.controlling import SIGNING, ask
from tests.server.registry.filled import (
    aggregate,
    answer,
    opened,
)


def signed(registry: Registry, start: Release, number: int, key: bytes) -> None:
    """Run a round whose release is signed."""
    plan = opened(registry, start, number)
    updates = [answer(plan, "ada")]
    for admitted, payload in updates:
        registry.rounds.accept(number, admitted, payload, actor="c")
    made = aggregate(start, plan, [admitted for admitted, _ in updates], number)
    registry.rounds.release(number, made, signature=bytes.fromhex(sign(made, key)), actor="c")


def test_a_verification_tells_good_bad_and_absent_signatures(
    fleet: Fleet, releases: list[Release]
) -> None:
    signed(fleet.registry, releases[2], 3, SIGNING)
    signed(fleet.registry, fleet.registry.releases.load(3), 4, make_key())
    told = ask(fleet, r.ReleaseVerify())
    found = {each["number"]: each["signature"] for each in told["releases"]}
    assert found == {0: "absent", 1: "absent", 2: "absent", 3: "good", 4: "bad"}
    assert told["sound"] is False
    without = dataclasses.replace(fleet, release_public=None)
    told = ask(without, r.ReleaseVerify())
    assert (told["sound"], told["signatures_checked"]) == (True, False)
    assert told["releases"][4]["signature"] == "unchecked"


def test_a_release_of_an_earlier_key_verifies_with_the_key_that_signed_it(
    fleet: Fleet, releases: list[Release]
) -> None:
    earlier, stranger = make_key(), make_key()
    fleet.registry.signers.add(public_of(earlier), actor="service")
    signed(fleet.registry, releases[2], 3, earlier)
    fleet.registry.signers.add(public_of(SIGNING), actor="service")
    signed(fleet.registry, fleet.registry.releases.load(3), 4, SIGNING)
    told = ask(fleet, r.ReleaseVerify())["releases"]
    assert [(row["signature"], row["key"]) for row in told[3:]] == [
        ("good", key_id(public_of(earlier))),
        ("good", key_id(public_of(SIGNING))),
    ]
    assert not [row for row in told[3:] if row["problems"]]
    restored = dataclasses.replace(fleet, release_public=None)  # a backup without keys
    assert ask(restored, r.ReleaseVerify())["releases"][3]["signature"] == "good"
    signed(fleet.registry, fleet.registry.releases.load(4), 5, stranger)
    told = ask(fleet, r.ReleaseVerify())["releases"]
    assert (told[5]["signature"], told[5]["key"]) == ("bad", None)
    assert key_id(public_of(earlier)) in told[5]["problems"][0]


def test_a_key_is_kept_once_and_leaves_a_row_of_the_audit(fleet: Fleet) -> None:
    first, second = public_of(make_key()), public_of(make_key())
    for public in (first, first, second, first):
        fleet.registry.signers.add(public, actor="service")
    assert list(fleet.registry.signers.all().values()) == [first, second]
    rows = fleet.registry.audit.rows(newest=2)
    assert [row.subject for row in rows] == [f"release-key {key_id(k)}" for k in (first, second)]
    with pytest.raises(FleetError) as refused:
        fleet.registry.signers.add(b"no key", actor="service")
    assert refused.value.code == "release-key"


def test_a_verification_finds_a_release_that_was_changed(fleet: Fleet) -> None:
    bare = dataclasses.replace(fleet, release_public=None)
    with fleet.registry.database.engine.begin() as connection:
        kept = tables.releases
        connection.execute(update(kept).where(kept.c.number == 2).values(method="other"))
    told = ask(bare, r.ReleaseVerify())
    assert told["sound"] is False
    assert [bool(each["problems"]) for each in told["releases"]] == [False, False, True]


def test_the_end_of_the_audit_is_checked_against_what_was_written_down(fleet: Fleet) -> None:
    head = ask(fleet, r.AuditVerify())
    fleet.registry.devices.tag("bob", add=["attic"], actor="anna")
    assert ask(fleet, r.AuditVerify(seq=head["seq"], hash=head["hash"]))["sound"] is True
    with pytest.raises(StorageError) as broken:
        ask(fleet, r.AuditVerify(seq=head["seq"], hash="0" * 64))
    assert broken.value.code == "audit-broken"
