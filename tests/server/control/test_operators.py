from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from fleet.errors import FleetError, InputError
from server.control import requests as r
from server.control.certificates import Identity, identity_of
from server.control.errors import AccessError
from server.control.operators import Operators, Standing
from server.control.remote import RemoteVerbs, Trust
from server.control.roles import Role
from server.control.service import Server
from server.control.verbs.fleet import Fleet
from tests.server.control.controlling import NOW, ask, known, remote, trust
from tests.server.registry.filled import Clock

DAY_S = timedelta(days=1).total_seconds()


@pytest.fixture
def operators(fleet: Fleet) -> Operators:
    return Operators(fleet.registry, fleet.clock)


def who(name: str, role: Role = Role.operator, number: int = 1) -> Identity:
    return Identity(name, role, f"{number:040x}")


def issue(operators: Operators, clock: Clock, *owners: Identity) -> None:
    for each in owners:
        operators.issued(each, clock.now_s + 90 * DAY_S, actor="root")


def code_of(operators: Operators, owner: Identity) -> str:
    try:
        operators.check(owner)
    except AccessError as refused:
        return refused.code
    return ""


def test_a_certificate_that_was_revoked_is_refused_with_who_when_and_why(
    operators: Operators, clock: Clock
) -> None:
    anna, bea = who("anna"), who("bea", number=2)
    issue(operators, clock, anna, bea)
    assert code_of(operators, anna) == ""
    operators.revoke("anna", why="left us", actor="root")
    with pytest.raises(AccessError, match=r"revoked by root at 20.*: left us") as refused:
        operators.check(anna)
    assert (refused.value.code, refused.value.exit_code) == ("certificate-revoked", 2)
    assert code_of(operators, bea) == ""


def test_a_certificate_that_nobody_wrote_down_is_refused(operators: Operators) -> None:
    assert code_of(operators, who("eve")) == "certificate-unknown"


def test_a_revocation_by_another_process_holds_at_the_next_call(
    fleet: Fleet, operators: Operators, clock: Clock
) -> None:
    issue(operators, clock, who("anna"))
    assert code_of(operators, who("anna")) == ""
    Operators(fleet.registry, fleet.clock).revoke("anna", why="", actor="root")
    assert code_of(operators, who("anna")) == "certificate-revoked"


def test_a_check_reads_only_what_the_audit_has_since_the_last(
    fleet: Fleet, operators: Operators, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(operators, clock, who("anna"))
    operators.check(who("anna"))
    read: list[int] = []
    from server.control import operators as module

    row_of = module.chain.row_of
    monkeypatch.setattr(module.chain, "row_of", lambda row: read.append(row.seq) or row_of(row))
    fleet.registry.devices.tag("ada", add=["attic"], actor="anna")
    operators.check(who("anna"))
    assert read == []
    issue(operators, clock, who("bea", number=2))
    operators.check(who("anna"))
    assert len(read) == 2  # once for the change itself, which trusts no memory


def test_a_name_stands_for_all_that_is_good_and_a_serial_number_for_one(
    operators: Operators, clock: Clock
) -> None:
    old, new, own = who("anna", number=1), who("anna", number=2), who("anna", number=3)
    issue(operators, clock, old)
    clock.now_s += 91 * DAY_S
    issue(operators, clock, new, own)
    assert [each.serial for each in operators.chosen("anna")] == [new.serial, own.serial]
    assert [each.serial for each in operators.revoke(own.serial, why="", actor="x")] == [own.serial]
    assert [each.serial for each in operators.chosen("anna")] == [new.serial]
    states = [each.state(clock.now_s) for each in operators.all()]
    assert states == [Standing.expired, Standing.good, Standing.revoked]


def test_who_is_nobody_is_said(operators: Operators) -> None:
    with pytest.raises(InputError) as refused:
        operators.chosen("nobody")
    assert refused.value.code == "no-such-operator"


def test_the_last_admin_stays_unless_it_is_meant(operators: Operators, clock: Clock) -> None:
    first, second = who("anna", Role.admin, 1), who("bea", Role.admin, 2)
    issue(operators, clock, first, second, who("cyd", Role.viewer, 3))
    operators.revoke("cyd", why="", actor="x")
    operators.revoke("anna", why="", actor="x")
    for last in ("bea", second.serial):
        with pytest.raises(InputError) as refused:
            operators.revoke(last, why="", actor="x")
        assert refused.value.code == "last-admin"
    assert code_of(operators, second) == ""
    operators.revoke("bea", last_admin=True, why="", actor="x")
    assert code_of(operators, second) == "certificate-revoked"


def test_where_there_is_no_admin_a_viewer_is_revoked_like_any(
    operators: Operators, clock: Clock
) -> None:
    issue(operators, clock, who("cyd", Role.viewer))
    operators.revoke("cyd", why="", actor="x")
    assert code_of(operators, who("cyd", Role.viewer)) == "certificate-revoked"


def test_an_admin_whose_certificate_has_expired_is_no_admin_that_is_left(
    operators: Operators, clock: Clock
) -> None:
    issue(operators, clock, who("anna", Role.admin, 1))
    clock.now_s += 91 * DAY_S
    issue(operators, clock, who("bea", Role.admin, 2))
    with pytest.raises(InputError) as refused:
        operators.chosen("bea")
    assert refused.value.code == "last-admin"


def test_a_revocation_is_one_row_of_the_audit_and_once_more_is_none(
    fleet: Fleet, operators: Operators, clock: Clock
) -> None:
    issue(operators, clock, who("anna", number=1), who("anna", number=2))
    head = fleet.registry.audit.head().seq
    asked = r.OperatorRevoke(key="k", operator="anna", why="left")
    assert ask(fleet, asked) == ask(fleet, asked)
    (row,) = fleet.registry.audit.rows(newest=fleet.registry.audit.head().seq - head)
    assert (row.actor, row.verb, row.subject) == ("anna", "operator.revoke", "anna")
    assert row.detail["serials"] == [who("", number=1).serial, who("", number=2).serial]
    assert ask(fleet, r.OperatorRevoke(key="k2", operator="anna"))["operators"] == []
    assert fleet.registry.audit.head().seq == head + 1
    assert fleet.registry.audit.verify().seq == head + 1


def test_a_list_tells_whose_from_when_to_when_and_why_not(
    fleet: Fleet, operators: Operators, clock: Clock
) -> None:
    issue(operators, clock, who("bea", Role.viewer, 2), who("anna", Role.admin, 1))
    operators.revoke("bea", why="left", actor="root")
    anna, bea = ask(fleet, r.OperatorList())["operators"]
    assert (anna["name"], anna["role"], anna["state"], anna["revoked"]) == (
        *("anna", "admin", "good"),
        None,
    )
    assert anna["issued"] == {"at": "2023-11-14T22:15:25Z", "by": "root"}
    assert anna["expires_at"] == "2024-02-12T22:15:25Z"
    assert (bea["state"], bea["revoked"]["why"]) == ("revoked", "left")


def test_on_an_open_connection_the_next_call_is_refused(fleet: Fleet) -> None:
    own = trust(Role.viewer, "bea")
    with remote(fleet, own) as verbs:
        assert verbs.ask(r.RoundList()).data["rounds"]
        ask(fleet, r.OperatorRevoke(key="k", operator="bea", why="left us"))
        with pytest.raises(FleetError, match="left us") as refused:
            verbs.ask(r.RoundList())
    assert (refused.value.code, refused.value.exit_code) == ("certificate-revoked", 2)


def test_a_certificate_of_the_authority_that_was_never_issued_comes_not_in(
    fleet: Fleet, server: Server
) -> None:
    with RemoteVerbs(f"127.0.0.1:{server.port}", trust(Role.admin, "eve")) as verbs:
        with pytest.raises(FleetError) as refused:
            verbs.ask(r.DeviceList())
        assert refused.value.code == "certificate-unknown"
        with pytest.raises(FleetError) as refused:
            next(iter(verbs.watch(0, 1.0)))
        assert refused.value.code == "certificate-unknown"


def test_a_watch_ends_when_its_certificate_is_revoked(fleet: Fleet) -> None:
    with remote(fleet, trust(Role.viewer, "bea")) as verbs:
        events = verbs.watch(None, 60.0)
        next(events)
        revoked = r.OperatorRevoke(key="k", operator="bea", why="left us")
        acting = threading.Thread(target=ask, args=(fleet, revoked))
        acting.start()
        with pytest.raises(FleetError) as refused:
            for _ in events:
                pass
        acting.join(30)
    assert refused.value.code == "certificate-revoked"


def test_an_admin_revokes_from_elsewhere_and_an_operator_does_not(fleet: Fleet) -> None:
    known(fleet, trust(Role.viewer, "bea"))
    asked = r.OperatorRevoke(key="k", operator="bea")
    with remote(fleet, trust(Role.operator, "cyd")) as verbs, pytest.raises(FleetError) as refused:
        verbs.ask(asked)
    assert refused.value.code == "role-needed"
    with remote(fleet, trust(Role.admin, "anna")) as verbs:
        told = verbs.ask(asked).data
    assert told["touches"]["certificates"][0].startswith("bea (viewer) ")
    assert fleet.registry.audit.rows(newest=1)[0].actor == "anna"


def test_a_serial_number_is_that_of_the_certificate() -> None:
    own: Trust = trust(Role.viewer)
    found = identity_of(own.own.certificate, NOW)
    assert len(found.serial) == 40
    assert identity_of(own.own.certificate, NOW) == found
    assert identity_of(trust(Role.viewer).own.certificate, NOW).serial != found.serial
