"""Everybody is selected or has a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InputError
from server.coordinator import draw
from server.registry.records import Deed, Device, DeviceState
from server.standing.eligibility import Absent, History, eligible
from server.standing.policy import FleetPolicy

NOW_S = 1_000_000.0
DIGEST = "a" * 64
DEED = Deed(at_s=0.0, by="operator", why="because")


def device(name: str, **changes: Any) -> Device:
    fields: dict[str, Any] = {
        "name": name,
        "state": DeviceState.enrolled,
        "public_key": "ssh x",
        "fingerprint": DIGEST,
        "enrolled": DEED,
        "seen_at_s": NOW_S,
        "status": {"train_windows": 20},
    }
    return Device(**{**fields, **changes})


def policy(**changes: Any) -> FleetPolicy:
    return FleetPolicy.parse({"base": DIGEST, **changes})


names = st.text("abcdef", min_size=1, max_size=4)
tags = st.lists(st.sampled_from(["lab", "old", "eu"]), max_size=3, unique=True)
states = st.sampled_from(list(DeviceState))
devices = st.lists(
    st.builds(
        device,
        names,
        state=states,
        tags=tags.map(tuple),
        seen_at_s=st.none() | st.floats(0, NOW_S),
        status=st.fixed_dictionaries(
            {}, optional={"train_windows": st.integers(0, 50), "reason": st.just("hot")}
        ),
        quarantined=st.just(DEED),
        revoked=st.just(DEED),
    ),
    max_size=12,
    unique_by=lambda each: each.name,
)
policies = st.builds(
    policy,
    cohort=st.sampled_from([0, 1, 3]),
    tags=st.sampled_from([(), ("lab",)]),
    without_tags=st.sampled_from([(), ("old",)]),
    stale_after_s=st.sampled_from([0.0, 1000.0]),
    min_train_windows=st.integers(0, 30),
    bytes_per_device_day=st.sampled_from([0, 500]),
    seed=st.integers(0, 3),
)


@given(devices, policies, st.sets(names), st.dictionaries(names, st.integers(0, 900)), st.data())
def test_everyone_is_selected_or_has_a_reason_and_never_both(
    all_devices: list[Device],
    held: FleetPolicy,
    online: set[str],
    spent: dict[str, int],
    data: st.DataObject,
) -> None:
    history = History(
        round=data.draw(st.integers(1, 5)),
        attempt=data.draw(st.integers(1, 3)),
        online=frozenset(online | {each.name for each in all_devices[::2]}),
        spent=spent,
        cost=100,
    )
    chosen, absent = eligible(held, all_devices, NOW_S, history)
    assert sorted([*chosen, *absent]) == sorted(each.name for each in all_devices)
    assert list(chosen) == sorted(chosen)
    assert len(chosen) <= (held.asked or len(all_devices))
    codes = {each.value for each in Absent}
    assert {each.reason for each in absent.values()} <= codes
    drawn_out = [name for name, each in absent.items() if each.reason == "not-drawn"]
    assert not drawn_out or len(chosen) == held.asked
    able = tuple(sorted([*chosen, *drawn_out]))
    assert chosen == draw(able, held.asked, held.seed, history.round, history.attempt - 1)
    by_name = {each.name: each for each in all_devices}
    for name in chosen:
        assert by_name[name].state is DeviceState.enrolled
        assert name in history.online
        assert int(by_name[name].status.get("train_windows", 0)) >= held.min_train_windows
    shuffled = data.draw(st.permutations(all_devices))
    assert eligible(held, shuffled, NOW_S, history) == (chosen, absent)


@pytest.mark.parametrize(
    ("changes", "wanted", "reason"),
    [
        ({"status": {}}, {"min_train_windows": 0}, "silent"),
        ({"state": "revoked", "revoked": DEED}, {}, "revoked"),
        ({"state": "quarantined", "quarantined": DEED}, {}, "quarantined"),
        ({}, {"tags": ["lab"]}, "tag"),
        ({"tags": ("old",)}, {"without_tags": ["old"]}, "tag"),
        ({"seen_at_s": NOW_S - 11}, {"stale_after_s": 10}, "stale"),
        ({"status": {"train_windows": 4}}, {"min_train_windows": 5}, "no-labels"),
        ({"status": {"train_windows": 9, "reason": "hot"}}, {}, "unusable"),
        ({}, {"bytes_per_device_day": 1000}, "byte-budget"),
    ],
)
def test_each_rule_has_its_reason(
    changes: dict[str, Any], wanted: dict[str, Any], reason: str
) -> None:
    history = History(round=1, online=frozenset({"ada"}), spent={"ada": 901}, cost=100)
    chosen, absent = eligible(policy(**wanted), [device("ada", **changes)], NOW_S, history)
    assert chosen == ()
    assert absent["ada"].reason == reason
    plain = History(round=1, online=frozenset({"ada"}), spent={"ada": 900}, cost=100)
    assert eligible(policy(**wanted), [device("bob")], NOW_S, plain)[1]["bob"].reason in (
        "offline",
        "tag",
    )


@pytest.mark.parametrize(("serves", "asked"), [(7, False), (8, True), (-1, True), (99, True)])
def test_who_serves_a_release_of_another_base_than_the_rounds_is_not_asked(
    serves: int, asked: bool
) -> None:
    one, two = "ab" * 32, "cd" * 32
    history = History(round=1, online=frozenset({"ada"}), base=two, bases={7: one, 8: two})
    ada = device("ada", serves_release=serves)
    chosen, absent = eligible(policy(), [ada], NOW_S, history)
    assert chosen == (("ada",) if asked else ())
    if not asked:
        told = "serves release 7 of base abababababab…, the round is of base cdcdcdcdcdcd…"
        assert (absent["ada"].reason, absent["ada"].detail) == ("other-base", told)
    anywhere = History(round=1, online=frozenset({"ada"}), bases={7: one})
    assert eligible(policy(), [ada], NOW_S, anywhere)[0] == ("ada",)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"cohort": 2, "quorum": 3}, "a cohort of 2 can never send 3"),
        ({"over_select": 1}, "beyond a quorum"),
        ({"over_select": 1, "quorum": 1, "cohort": 2}, "leave cohort 0"),
        ({"tags": ["a"], "without_tags": ["a"]}, "has and has not the tag 'a'"),
        ({"rule": "mode"}, "there is no rule 'mode'"),
        ({"deadline_s": 0}, "greater than 0"),
    ],
)
def test_a_policy_that_cannot_be_carried_out_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        policy(**changes)
    assert caught.value.code == "bad-policy"


def test_the_cohort_is_the_coordinators_draw_and_another_attempt_draws_others() -> None:
    able = [device(f"d{number}") for number in range(10)]
    online, seen = frozenset(each.name for each in able), set()
    for attempt in (1, 2, 3):
        history = History(round=4, attempt=attempt, online=online)
        chosen, absent = eligible(policy(cohort=3, seed=5), able, NOW_S, history)
        assert chosen == draw(tuple(sorted(online)), 3, 5, 4, attempt - 1)
        assert {each.reason for each in absent.values()} == {"not-drawn"}
        seen.add(chosen)
    assert len(seen) == 3
