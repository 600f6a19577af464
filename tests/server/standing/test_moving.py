"""The fleet moves to another base: an order becomes a release, once, and rounds go on with it."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.federate.rule import read_rule
from fleet.federate.signing import make_key, public_of, verify
from server.registry.records import ReleaseRow
from server.signing import Signer
from server.standing.line import line_of, told_of, trained_base
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Fleet
from tests.server.standing.two_bases import (
    finished,
    installed,
    made_from,
    more_of,
    moved,
    ordered,
    second,
    shaken,
)


@pytest.fixture
def learned(quick: Fleet) -> Fleet:
    """A fleet whose three devices serve release 1; rounds on order only."""
    quick.policy(rounds=1)
    quick.released(1)
    served(quick, 1)
    quick.policy(every_s=0.0)
    return quick


def served(fleet: Fleet, number: int) -> None:
    fleet.run(lambda: [fleet.devices.serves.get(d) for d in fleet.devices.names] == [number] * 3)


def current(fleet: Fleet) -> ReleaseRow:
    found = fleet.registry.releases.current()
    assert found is not None
    return found


def round_on(fleet: Fleet) -> int:
    """Run one round that is ordered; return the number of its release."""
    number = fleet.registry.releases.next_number()
    fleet.registry.orders.place("start_round", actor=OPERATOR)
    fleet.released(number)
    return number


def test_a_rebase_is_a_signed_release_of_the_new_base_that_every_device_serves(
    learned: Fleet,
) -> None:
    key = make_key()
    learned.start(sign=Signer(key))
    base = second(learned)
    result = moved(learned, base, why="frames exhausted")
    assert result.pop("difference") <= 1e-5
    assert result == {
        "release": 2,
        "base": base,
        "kind": "rebased",
        "from_base": learned.base.digest,
        "new_labels": [],
        "promoted": True,
    }
    row = current(learned)
    assert (row.number, row.base, row.parent) == (2, base, learned.registry.releases.get(1).digest)
    assert verify(row, row.signature, public_of(key))
    assert learned.registry.releases.load(2).state.norm == 0.0
    assert (row.created.by, row.created.why) == (OPERATOR, "rebase, order 1: frames exhausted")
    served(learned, 2)
    assert learned.registry.devices.get(learned.devices.names[0]).serves == (
        learned.devices.kernels(2)
    )
    (said,) = learned.events("release.rebased")
    assert said == {"release": 2, "base": base, "promoted": True}


def test_rounds_go_on_from_the_new_base_by_the_policy_that_was_there(learned: Fleet) -> None:
    base = second(learned, rank=1)
    moved(learned, base)
    served(learned, 2)
    version, _ = learned.registry.policy.get()
    assert round_on(learned) == 3
    row = learned.registry.rounds.get(1 + 1)
    assert (row.plan.base, row.plan.release, row.plan.rank) == (base, 2, 1)
    three = learned.registry.releases.load(3)
    assert (three.base, three.parent) == (base, learned.registry.releases.get(2).digest)
    assert three.state.norm > 0
    assert learned.registry.replay(2).same
    assert learned.registry.replay(1).same
    assert learned.registry.policy.get()[0] == version


def test_a_rollback_over_a_rebase_and_forward_again_needs_no_policy(learned: Fleet) -> None:
    base = second(learned)
    moved(learned, base)
    served(learned, 2)
    releases = learned.registry.releases
    before = {number: learned.devices.kernels(number) for number in (1, 2)}
    releases.promote(1, why="worse", actor=OPERATOR)
    served(learned, 1)
    assert learned.registry.devices.get(learned.devices.names[0]).serves == before[1]
    assert round_on(learned) == 3  # numbers are never used twice
    three = releases.get(3)
    assert (three.base, three.parent) == (learned.base.digest, releases.get(1).digest)
    releases.promote(2, actor=OPERATOR)
    served(learned, 2)
    assert learned.registry.devices.get(learned.devices.names[0]).serves == before[2]
    learned.policy(base=base, every_s=0.0)
    releases.promote(3, actor=OPERATOR)
    served(learned, 3)
    assert round_on(learned) == 4  # by a policy that names the later base


def test_a_second_rebase_goes_on_from_the_first_one(learned: Fleet) -> None:
    one = second(learned)
    moved(learned, one)
    served(learned, 2)
    round_on(learned)
    first = learned.service.bench.base(one)
    two = installed(learned, made_from(first, learned.registry.releases.load(3).state))
    assert moved(learned, two)["release"] == 4
    served(learned, 4)
    line = line_of(learned.registry, current(learned))
    assert line == (learned.base.digest, one, two)
    assert [row.number for row in learned.registry.releases.lineage(4)] == [4, 3, 2, 1, 0]
    _, held = learned.registry.policy.get()
    assert (held.base, trained_base(learned.registry, held)) == (learned.base.digest, two)
    assert round_on(learned) == 5


def test_a_grown_head_is_carried_over_with_the_core(learned: Fleet) -> None:
    base = installed(learned, more_of(learned.base, "stairs"))
    result = moved(learned, base)
    assert (result["kind"], result["new_labels"], result["difference"]) == (
        "grown",
        ["stairs"],
        0.0,
    )
    one, two = (learned.registry.releases.load(number) for number in (1, 2))
    assert two.state.digest == one.state.digest  # the head is no part of a core
    served(learned, 2)
    assert round_on(learned) == 3


def test_a_held_rebase_reaches_nobody_until_it_is_promoted(learned: Fleet) -> None:
    base = second(learned)
    assert moved(learned, base, hold=True)["promoted"] is False
    learned.devices.told.clear()
    learned.steps(5)
    assert learned.devices.told == []
    assert current(learned).number == 1
    assert base not in line_of(learned.registry, current(learned))
    again = finished(learned, ordered(learned, base))
    assert again.error.startswith("already-there: release 2 is the fleet's release on base")
    assert again.error.endswith("; next: Move the fleet to it: fleet release promote 2")
    learned.registry.releases.promote(2, actor=OPERATOR)
    served(learned, 2)


def test_a_rebase_waits_for_the_open_round_and_goes_on_from_its_release(learned: Fleet) -> None:
    base = second(learned)
    orders: list[Any] = []
    name = learned.devices.names[0]

    def during(message: Any, context: Any) -> Any:
        if not orders:
            orders.append(ordered(learned, base, another_network=True))
        return learned.devices._honest("train", name, message, context)

    learned.devices.answers[name, "train"] = during
    round_on(learned)
    assert finished(learned, orders[0]).result["release"] == 3
    assert current(learned).parent == learned.registry.releases.get(2).digest
    row = learned.registry.rounds.get(2)
    assert row.closed is not None
    assert learned.registry.releases.get(3).created.at_s >= row.closed.at_s


def test_another_network_is_refused_unless_it_is_meant(learned: Fleet) -> None:
    base = installed(learned, shaken(learned.base))
    refused = finished(learned, ordered(learned, base))
    assert refused.state.value == "failed"
    assert refused.error.startswith("another-network: ")
    assert len(learned.registry.releases.all()) == 2
    result = moved(learned, base, another_network=True)
    assert result["difference"] > 0.01
    served(learned, 2)


def test_a_rebase_that_cannot_be_fails_its_order_and_the_service_goes_on(quick: Fleet) -> None:
    none = finished(quick, ordered(quick, quick.base.digest))
    assert none.error.startswith("no-release: ")
    quick.policy(rounds=1)
    quick.released(1)
    assert finished(quick, ordered(quick, quick.base.digest)).error.startswith("already-there: ")
    quick.registry.bases.install("ab" * 32, b"noise", actor=OPERATOR)
    damaged = finished(quick, ordered(quick, "ab" * 32))
    assert damaged.error.startswith("base-unreadable: the file is no whole safetensors file")
    assert len(quick.registry.releases.all()) == 2
    served(quick, 1)


def test_a_policy_for_a_base_that_the_fleet_never_was_on_opens_no_round(learned: Fleet) -> None:
    base = second(learned)
    learned.policy(base=base)
    learned.steps(8)
    (said, *_) = learned.events("round.waiting")[-1:]
    assert said["why"].startswith(f"the policy has base {base[:12]}, the fleet's release 1 came")
    beat = learned.registry.observations.heartbeat()
    assert beat is not None
    assert f"fleet release rebase {base}" in beat.doing["next"]
    _, held = learned.registry.policy.get()
    assert trained_base(learned.registry, held) == base
    moved(learned, base)
    served(learned, 2)
    learned.released(2)


def test_a_rule_that_remembers_starts_afresh_on_a_new_base(learned: Fleet) -> None:
    rule = read_rule("momentum:0.9")
    learned.policy(every_s=0.0, rule="momentum:0.9")
    round_on(learned)
    served(learned, 2)
    assert learned.registry.releases.memory(2, rule).steps == 1
    moved(learned, second(learned))
    served(learned, 3)
    assert learned.registry.releases.memory(3, rule).steps == 0
    round_on(learned)
    assert learned.registry.releases.memory(4, rule).steps == 1
    for number in (1, 2, 3):
        assert learned.registry.replay(number).same
    learned.registry.releases.promote(2, actor=OPERATOR)
    served(learned, 2)
    round_on(learned)
    assert learned.registry.releases.memory(5, rule).steps == 2


def test_a_device_on_another_base_is_not_asked_and_the_reason_is_kept(learned: Fleet) -> None:
    pinned = learned.devices.names[1]
    learned.registry.devices.pin(pinned, 1, actor=OPERATOR)
    base = second(learned)
    moved(learned, base)
    learned.run(lambda: [*learned.devices.serves.values()].count(2) == 2)
    learned.policy(every_s=0.0, minimum=2, quorum=2)
    learned.devices.trained.clear()
    round_on(learned)
    assert pinned not in {device for device, _ in learned.devices.trained}
    absence = learned.registry.rounds.absences(2)[pinned]
    old = learned.base.digest
    wanted = f"serves release 1 of base {old[:12]}…, the round is of base {base[:12]}…"
    assert (absence.reason, absence.detail) == ("other-base", wanted)
    order = learned.registry.orders.place("evaluate", {"release": 3}, actor=OPERATOR)
    finished(learned, order)
    row = learned.registry.audit.rows(subject="release 3")[-1]
    assert row.detail["absent"][pinned] == (
        f"other-base: serves release 1 of base {old[:12]}…, release 3 is of base {base[:12]}…"
    )


def test_the_policys_evaluation_of_a_rebase_waits_until_somebody_has_followed(
    learned: Fleet,
) -> None:
    learned.policy(every_s=0.0, evaluate_every=1)
    learned.steps(2)
    moved(learned, second(learned), hold=True)
    asked = learned.devices.asked
    asked.clear()
    learned.steps(5)
    assert "evaluate" not in {kind for _, kind in asked}
    learned.registry.releases.promote(2, actor=OPERATOR)
    learned.run(lambda: any(each["release"] == 2 for each in learned.events("release.evaluated")))
    assert [kind for _, kind in asked].count("evaluate") >= 1


def test_what_a_release_says_of_its_rebase_and_nothing_of_a_rounds(learned: Fleet) -> None:
    moved(learned, second(learned))
    releases = learned.registry.releases
    told = told_of(releases.get(2).provenance)
    assert told is not None
    assert (told["kind"], told["from_base"]) == ("rebased", learned.base.digest)
    assert told_of(releases.get(1).provenance) is None
    assert releases.bases() == {
        0: learned.base.digest,
        1: learned.base.digest,
        2: releases.get(2).base,
    }
