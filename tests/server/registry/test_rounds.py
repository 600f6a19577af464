from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fleet.errors import FleetError, InputError, MismatchError, RoundError
from fleet.federate.admission import Reason
from server.registry import Registry, answers
from server.registry.records import RefusalRow, RoundState
from tests.server.registry.filled import (
    COORDINATOR,
    DEVICES,
    FIRST,
    NOW_S,
    OPERATOR,
    RULE,
    Clock,
    aggregate,
    answer,
    opened,
    plan_from,
    run_round,
)


def refusal(device: str, reason: Reason = Reason.failed, detail: str = "died") -> RefusalRow:
    return RefusalRow(device=device, reason=reason, detail=detail, at_s=NOW_S)


def accept(registry: Registry, number: int, device: str, seed: int = 0) -> bool:
    plan = registry.rounds.get(number).plan
    return registry.rounds.accept(number, *answer(plan, device, seed), actor=COORDINATOR)


def test_a_round_that_was_cut_off_is_handed_on_as_it_stood(
    registry: Registry, open_again: Callable[[], Registry], clock: Clock
) -> None:
    plan = opened(registry)
    admitted, payload = answer(plan, "bob")
    clock.now_s += 5
    assert registry.rounds.accept(1, admitted, payload, actor=COORDINATOR)
    registry.rounds.refuse(1, refusal("cyd"), actor=COORDINATOR)
    registry.close()

    found = open_again().open_round()
    assert found is not None
    assert (found.row.plan, found.row.plan.id) == (plan, plan.id)
    assert found.row.selected == DEVICES
    assert found.row.rule == RULE
    assert (found.row.opened.at_s, found.row.deadline_at_s) == (NOW_S, NOW_S + plan.deadline_s)
    assert found.unanswered == ("ada",)
    assert [(each.device, each.reason) for each in found.refusals] == [("cyd", Reason.failed)]
    (update,) = found.updates
    assert (update.device, update.weight, update.digest) == (
        "bob",
        admitted.weight,
        admitted.digest,
    )
    assert (update.norm, update.arrived_at_s) == (admitted.norm, NOW_S + 5)
    assert update.payload.array.tobytes() == payload.array.tobytes()
    assert update.payload.config == payload.config


def test_a_late_answer_to_an_earlier_plan_leaves_the_device_unanswered(registry: Registry) -> None:
    opened(registry)
    late = refusal("ada", Reason.late).model_copy(update={"earlier": True})
    assert registry.rounds.refuse(1, late, actor=COORDINATOR)
    found = registry.open_round()
    assert found is not None
    assert found.unanswered == DEVICES
    assert found.refusals == (late,)


def test_a_duplicate_changes_nothing_even_when_it_differs(registry: Registry) -> None:
    opened(registry)
    assert accept(registry, 1, "ada")
    before, head = registry.rounds.updates(1), registry.audit.head()
    assert not accept(registry, 1, "ada")
    assert not accept(registry, 1, "ada", seed=7)
    (kept,) = registry.rounds.updates(1)
    assert kept.digest == before[0].digest
    assert registry.audit.head() == head


def test_a_round_is_closed_together_with_its_release(registry: Registry, clock: Clock) -> None:
    made = run_round(registry)
    row = registry.rounds.get(1)
    assert (row.state, row.release) == (RoundState.released, 1)
    assert row.closed is not None
    assert row.closed.by == COORDINATOR
    assert registry.releases.get(1).digest == made.digest
    assert registry.open_round() is None
    with pytest.raises(RoundError) as caught:
        accept(registry, 1, "ada")
    assert caught.value.code == "round-closed"


def test_a_release_may_wait_for_its_promotion(registry: Registry) -> None:
    plan = opened(registry)
    admitted, payload = answer(plan, "ada")
    registry.rounds.accept(1, admitted, payload, actor=COORDINATOR)
    silent = [refusal(device, Reason.no_reply, "") for device in ("bob", "cyd")]
    row = registry.rounds.release(
        1,
        aggregate(FIRST, plan, [admitted]),
        refused=silent,
        signature=b"s",
        promote=False,
        traffic={"bytes_up": 2000},
        actor=COORDINATOR,
    )
    assert row.traffic == {"bytes_up": 2000}
    assert registry.rounds.refusals(1) == tuple(silent)
    current = registry.releases.current()
    assert current is not None
    assert current.number == 0
    assert registry.releases.get(1).promoted is None
    assert registry.releases.get(1).signature == b"s".hex()


def test_only_one_round_is_open_at_a_time(registry: Registry) -> None:
    opened(registry)
    for number in (1, 2):
        with pytest.raises(RoundError, match="round 1 is open") as caught:
            opened(registry, number=number)
        assert caught.value.code == "round-open"


def test_an_abandoned_round_is_tried_again_under_the_same_plan(registry: Registry) -> None:
    plan = opened(registry)
    accept(registry, 1, "ada")
    gone = registry.rounds.abandon(
        1, why="one of three", refused=[refusal("bob")], actor=COORDINATOR
    )
    assert (gone.state, gone.release, gone.attempt) == (RoundState.abandoned, None, 1)
    assert opened(registry).id == plan.id
    assert registry.rounds.get(1).attempt == 2
    found = registry.open_round()
    assert found is not None
    assert (found.updates, found.refusals) == ((), ())
    assert accept(registry, 1, "ada")
    assert [each.device for each in registry.rounds.updates(1, attempt=1)] == ["ada"]
    registry.rounds.abandon(1, why="again", actor=COORDINATOR)
    run_round(registry, number=2)
    states = [(row.round, row.attempt, row.state.value) for row in registry.rounds.all()]
    assert states == [(1, 1, "abandoned"), (1, 2, "abandoned"), (2, 1, "released")]


def test_rounds_have_no_gaps_and_a_released_one_is_over(registry: Registry) -> None:
    run_round(registry)
    for number in (1, 3):
        with pytest.raises(RoundError, match="after round 1 comes 2") as caught:
            opened(registry, number=number)
        assert caught.value.code == "round-number"
    assert [row.round for row in registry.rounds.all(newest=1)] == [1]
    with pytest.raises(InputError):
        registry.rounds.all(newest=0)


def test_a_plan_starts_from_a_release_that_is_here(registry: Registry) -> None:
    for changes, code in (
        ({"state": "0" * 64}, "wrong-release"),
        ({"base": "0" * 64}, "wrong-release"),
        ({"release": 3}, "no-such-release"),
    ):
        with pytest.raises(FleetError) as caught:
            registry.rounds.open(
                plan_from(FIRST, 1, **changes), DEVICES, rule=RULE, actor=COORDINATOR
            )
        assert caught.value.code == code
    assert registry.open_round() is None


def test_only_enrolled_devices_are_asked_and_heard(registry: Registry) -> None:
    registry.devices.quarantine("cyd", why="drifts", actor=OPERATOR)
    with pytest.raises(InputError, match="cyd is quarantined, eve is not enrolled") as caught:
        registry.rounds.open(plan_from(FIRST, 1), [*DEVICES, "eve"], rule=RULE, actor=COORDINATOR)
    assert caught.value.code == "not-eligible"
    registry.rounds.open(plan_from(FIRST, 1), ["ada", "bob"], rule=RULE, actor=COORDINATOR)
    with pytest.raises(InputError) as caught:
        accept(registry, 1, "cyd")
    assert caught.value.code == "not-selected"
    registry.devices.revoke("bob", why="stolen", actor=OPERATOR)
    with pytest.raises(InputError) as caught:
        accept(registry, 1, "bob")
    assert caught.value.code == "not-eligible"
    assert registry.rounds.updates(1) == ()


def test_a_round_asks_somebody(registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        registry.rounds.open(plan_from(FIRST, 1), [], rule=RULE, actor=COORDINATOR)
    assert caught.value.code == "empty-cohort"


def test_an_update_to_another_plan_is_refused(registry: Registry) -> None:
    opened(registry)
    admitted, payload = answer(plan_from(FIRST, 1, seed=1), "ada")
    with pytest.raises(MismatchError) as caught:
        registry.rounds.accept(1, admitted, payload, actor=COORDINATOR)
    assert caught.value.code == "wrong-plan"


def test_a_release_of_another_line_leaves_the_round_open(registry: Registry) -> None:
    plan = opened(registry)
    admitted, payload = answer(plan, "ada")
    registry.rounds.accept(1, admitted, payload, actor=COORDINATOR)
    head = registry.audit.head()
    right = aggregate(FIRST, plan, [admitted])
    for wrong, code in (
        (replace(right, parent="0" * 64), "wrong-parent"),
        (aggregate(FIRST, plan, [admitted], 2), "release-number"),
    ):
        with pytest.raises(MismatchError) as caught:
            registry.rounds.release(1, wrong, refused=[refusal("bob")], actor=COORDINATOR)
        assert caught.value.code == code
    assert registry.open_round() is not None
    assert registry.rounds.refusals(1) == ()
    assert registry.audit.head() == head


def test_a_refusal_is_kept_once_and_any_text_can_be_kept(registry: Registry) -> None:
    opened(registry)
    odd = refusal("ada", detail="a\0b\ud800" + "x" * 1000)
    assert registry.rounds.refuse(1, odd, actor=COORDINATOR)
    assert not registry.rounds.refuse(1, odd, actor=COORDINATOR)
    assert registry.rounds.refuse(1, refusal("ada", Reason.duplicate), actor=COORDINATOR)
    first, second = registry.rounds.refusals(1)
    assert first.detail.startswith("a\ufffdb?x")
    assert len(first.detail) == 500
    assert second.reason is Reason.duplicate


def test_a_flood_of_refusals_has_an_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LARGEST_STRAY_REFUSALS", 2)
    opened(registry)
    kept = [
        registry.rounds.refuse(1, refusal(f"eve-{n}", Reason.unselected), actor=COORDINATOR)
        for n in range(7)
    ]
    assert kept == [True] * 5 + [False] * 2


def test_a_round_that_never_was_is_named(registry: Registry) -> None:
    run_round(registry)
    for number, attempt in ((2, None), (1, 2)):
        with pytest.raises(InputError) as caught:
            registry.rounds.get(number, attempt)
        assert caught.value.code == "no-such-round"


def test_numbers_that_a_device_sends_come_back_to_the_bit(registry: Registry) -> None:
    plan = opened(registry)
    admitted, payload = answer(plan, "ada")
    odd = replace(payload, config={**payload.config, "loss": 0.1 + 0.2, "steps": 2**53 + 1})
    registry.rounds.accept(1, admitted, odd, actor=COORDINATOR)
    (kept,) = registry.rounds.updates(1)
    assert kept.payload.config == odd.config
    assert np.array_equal(kept.payload.array, payload.array)
