from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy import select

from fleet.errors import InputError
from fleet.federate.records import GUARDS
from server.registry import Registry, absences
from server.registry.absences import Absence
from server.registry.observations import DAY_S, KEPT_DAYS
from server.registry.standing_tables import policies
from server.standing.policy import FleetPolicy
from tests.server.registry.filled import (
    BASE,
    COORDINATOR,
    FIRST,
    NOW_S,
    OPERATOR,
    RULE,
    Clock,
    plan_from,
)

POLICY = FleetPolicy(base=BASE.digest)


def test_every_version_of_the_policy_stays_and_the_last_one_holds(
    registry: Registry, open_again: Callable[[], Registry]
) -> None:
    with pytest.raises(InputError) as caught:
        registry.policy.get()
    assert caught.value.code == "no-policy"
    assert registry.policy.newest() is None
    first = registry.policy.set(POLICY, why="first", actor=OPERATOR, key="k")
    assert (first.version, first.set.by, first.set.why, first.set.at_s) == (
        1,
        OPERATOR,
        "first",
        NOW_S,
    )
    other = POLICY.model_copy(update={"quorum": 3, "tags": ("lab",)})
    registry.policy.set(other, actor=OPERATOR)
    again = open_again()
    assert again.policy.get() == (2, other)
    assert [each.policy for each in again.policy.history()] == [POLICY, other]
    assert registry.policy.set(POLICY, why="first", actor=OPERATOR, key="k") == first
    assert registry.policy.get()[0] == 2
    verbs = [row.verb for row in registry.audit.rows() if row.verb == "policy.set"]
    assert len(verbs) == 2


def test_a_policy_without_guards_is_kept_as_one_from_before_there_were_any(
    registry: Registry, open_again: Callable[[], Registry]
) -> None:
    guarded = POLICY.model_copy(update={"ewc": 2.0})
    for policy in (POLICY, guarded):
        registry.policy.set(policy, actor=OPERATOR)
    with registry.policy._ledger.database.read() as connection:
        rows = connection.execute(select(policies.c.policy).order_by(policies.c.version)).all()
    kept = [set(GUARDS) & json.loads(row.policy).keys() for row in rows]
    assert kept == [set(), {"ewc"}]
    assert [each.policy for each in open_again().policy.history()] == [POLICY, guarded]


def test_setting_the_policy_that_holds_changes_nothing(registry: Registry) -> None:
    first = registry.policy.set(POLICY, actor=OPERATOR)
    head = registry.audit.head()
    assert registry.policy.set(POLICY, actor="another") == first
    assert registry.audit.head() == head


def test_the_absent_are_kept_with_the_round_that_they_are_absent_from(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"cyd": Absence(reason="offline", detail="never seen"), "bob": Absence(reason="tag")}
    registry.rounds.open(plan_from(FIRST, 1), ["ada"], rule=RULE, absent=absent, actor=COORDINATOR)
    assert registry.rounds.absences(1) == absent
    assert list(registry.rounds.absences(1)) == ["bob", "cyd"]
    registry.rounds.abandon(1, why="x", actor=COORDINATOR)
    registry.rounds.open(plan_from(FIRST, 1), ["bob"], rule=RULE, actor=COORDINATOR)
    assert registry.rounds.absences(1) == {}
    assert registry.rounds.absences(1, 1) == absent
    registry.rounds.abandon(1, why="x", actor=COORDINATOR)
    monkeypatch.setattr(absences, "KEPT_ROUNDS", 0)
    registry.rounds.open(plan_from(FIRST, 1), ["bob"], rule=RULE, absent=absent, actor=COORDINATOR)
    assert registry.rounds.absences(1, 1) == {}
    assert registry.rounds.absences(1, 3) == absent


def test_bytes_add_up_by_the_day_and_old_days_go(registry: Registry, clock: Clock) -> None:
    registry.observations.spend({"ada": 10, "bob": 1})
    registry.observations.spend({"ada": 5})
    assert registry.observations.spent() == {"ada": 15, "bob": 1}
    clock.now_s += DAY_S
    assert registry.observations.spent() == {}
    clock.now_s += KEPT_DAYS * DAY_S
    registry.observations.spend({"bob": 2})
    clock.now_s -= (KEPT_DAYS + 1) * DAY_S
    assert registry.observations.spent() == {}


def test_a_delivery_counts_its_tries_until_the_device_serves(registry: Registry) -> None:
    seen = registry.observations
    assert seen.deliveries() == {}
    assert seen.told("ada", 0, "probe-fell").tries == 1
    assert seen.told("ada", 0, "probe-fell").tries == 2
    done = seen.told("ada", 0, "")
    assert (done.tries, done.reason, done.told_at_s) == (3, "", NOW_S)
    assert seen.told("ada", 0, "busy").tries == 1
    assert seen.deliveries() == {"ada": seen.deliveries()["ada"]}


def test_the_last_heartbeat_is_kept(registry: Registry, clock: Clock) -> None:
    assert registry.observations.heartbeat() is None
    for doing in ({"phase": "idle"}, {"phase": "collecting"}):
        clock.now_s += 1
        registry.observations.beat(pid=7, version="1", started_at_s=NOW_S, doing=doing)
    beat = registry.observations.heartbeat()
    assert beat is not None
    assert (beat.alive_at_s, beat.started_at_s, beat.pid) == (NOW_S + 2, NOW_S, 7)
    assert beat.doing == {"phase": "collecting"}


def test_an_evaluation_is_kept_by_device_and_audited(registry: Registry) -> None:
    counts = {"ada": [[3, 1], [0, 4]], "bob": [[1, 0], [0, 1]]}
    assert registry.observations.evaluated(0, counts, actor=COORDINATOR) == 2
    assert registry.observations.evaluation(0) == counts
    assert registry.audit.rows()[-1].verb == "release.evaluate"
    assert registry.observations.evaluated(0, {"bob": [[2]]}, actor=COORDINATOR) == 1
    assert registry.observations.evaluation(0) == {"bob": [[2]]}
    with pytest.raises(InputError) as caught:
        registry.observations.evaluated(9, counts, actor=COORDINATOR)
    assert caught.value.code == "no-such-release"
