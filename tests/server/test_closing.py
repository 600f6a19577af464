"""Rules in the coordinator: who needs how many, what is recorded, what is remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fleet.errors import InputError
from fleet.federate.aggregate import dequantise, quantise
from fleet.federate.records import Plan
from fleet.federate.releases import Release, next_release
from fleet.federate.rule import RuleSpec, read_rule
from server import coordinator as c
from server.rules import rule_of
from server.rules.memory import Memory
from tests.fleet.federate.factories import make_payload
from tests.server.coordinating import START, answer, flat_of, make_rules, opened, record_of, take

SEVEN = tuple(f"person-{n:02d}" for n in range(1, 8))


def rules(text: str, **changes: Any) -> dict[str, Any]:
    return {"rule": read_rule(text), **changes}


def closed_by(text: str, devices: tuple[str, ...] = SEVEN, **changes: Any) -> tuple[c.State, Any]:
    state = opened(SEVEN, **rules(text, **changes))
    return take(state, *(answer(state, each) for each in devices), c.Tick(100.0))


def publish_of(effects: tuple[c.Effect, ...]) -> c.Publish:
    (publish,) = (each for each in effects if isinstance(each, c.Publish))
    return publish


def test_the_median_of_a_round_is_the_median_of_what_devices_sent() -> None:
    state, effects = closed_by("median")
    wanted = np.median(np.stack([flat_of(each) for each in SEVEN]), axis=0)
    np.testing.assert_array_equal(state.release.state.flat(), wanted)
    assert record_of(effects).released


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mean", {"name": "mean"}),
        ("clip:1000", {"name": "clip", "norm": 1000.0, "clipped": []}),
        ("trimmed:0.2", {"name": "trimmed", "beta": 0.2}),
        ("multikrum:1", {"name": "multikrum", "liars": 1}),
    ],
)
def test_record_and_provenance_say_the_rule_its_parameter_and_what_it_did(
    text: str, said: dict[str, Any]
) -> None:
    state, effects = closed_by(text)
    assert record_of(effects).rule == said
    assert state.release.provenance["rule"] == said
    assert list(state.release.provenance["devices"]) == list(SEVEN)


def test_krum_s_record_names_the_device_that_was_followed() -> None:
    state, effects = closed_by("krum:2")
    (followed,) = record_of(effects).rule["followed"]
    np.testing.assert_array_equal(
        state.release.state.flat(), dequantise(quantise(flat_of(followed))).astype(np.float32)
    )


def test_too_few_updates_for_the_rule_abandon_the_round_with_that_reason() -> None:
    state, effects = closed_by("krum:2", SEVEN[:6], quorum=1)
    record = record_of(effects)
    assert publish_of(effects).release is None
    assert record.reason == "6 update(s) accepted, the rule krum:2 needs 7"
    assert record.rule == {"name": "krum", "liars": 2}
    assert (state.phase, state.round, state.release) == (c.Phase.idle, 1, START)


def test_without_the_quorum_the_reason_is_the_quorum() -> None:
    _, effects = closed_by("median", SEVEN[:3], quorum=5)
    assert record_of(effects).reason == "3 update(s) accepted, the quorum needs 5"


def test_a_rule_that_fails_abandons_the_round_and_the_run_ends_with_its_reason() -> None:
    # Two sevens in a row are a step of 13.3 by momentum, which no release can keep.
    state = opened(SEVEN[:1], **rules("momentum:0.9", rounds=9))
    far = np.full(START.state.layout.size, 7.0, np.float32)

    def round_of(state: c.State) -> c.Step:
        assert isinstance(state.plan, Plan)
        payload = make_payload(state.plan, far, device=SEVEN[0])
        return c.step(state, c.Answered(1.0, SEVEN[0], payload))

    state, _ = round_of(state)
    release, memory = state.release, state.memory
    state, _ = c.step(state, c.Published(2.0))
    for _ in range(3):
        state, _ = take(state, c.Fleet(3.0, SEVEN[:1]), c.Pushed(3.0))
        state, effects = round_of(state)
        assert "momentum:0.9 cannot be applied: an entry of 13.3" in record_of(effects).reason
        assert (state.release, state.memory) == (release, memory)
    end = effects[-1]
    assert isinstance(end, c.End)
    assert end.error is not None
    assert "momentum:0.9 cannot be applied" in end.error.message


def test_a_round_does_not_open_before_the_rule_has_devices_enough() -> None:
    state = c.begin(make_rules(**rules("krum:2")), opened().task, START)
    state, effects = c.step(state, c.Fleet(0.0, SEVEN[:6]))
    assert (state.phase, effects) == (c.Phase.idle, ())
    opening, _ = c.step(state, c.Fleet(1.0, SEVEN))
    assert opening.phase is c.Phase.planned
    state, (end,) = c.step(state, c.Fleet(30.0, SEVEN[:6]))
    assert isinstance(end, c.End)
    assert end.error is not None
    assert end.error.message.endswith("a round needs 7, its rule krum:2 does")


def test_a_cohort_that_can_never_be_enough_is_refused_at_once() -> None:
    with pytest.raises(InputError) as refused:
        make_rules(**rules("krum:3", cohort=8))
    assert refused.value.code == "rule-above-cohort"
    assert "krum:3 needs 9 updates, a cohort of 8" in refused.value.message


def test_the_mean_needs_no_more_than_the_quorum() -> None:
    assert make_rules().needed(5) == 3
    assert make_rules(**rules("median")).needed(1) == 3
    assert make_rules(**rules("median", quorum=6)).needed(7) == 6


Kept = list[tuple[Release, Memory, dict[str, Any]]]


def three_rounds(spec: RuleSpec) -> Kept:
    """Run rounds; return each one's start, memory before and updates by device."""
    state, kept = opened(SEVEN, rule=spec, rounds=3), []
    for turn in range(3):
        before = (state.release, state.memory)
        assert isinstance(state.plan, Plan)
        events = [answer(state, each, examples=turn + 1 + n) for n, each in enumerate(SEVEN)]
        for event in events[:-1]:
            state, _ = c.step(state, event)
        almost = state
        state, effects = c.step(state, events[-1])
        publish = publish_of(effects)
        assert publish.record.memory is state.memory
        kept.append((*before, {"state": almost, "last": events[-1], "publish": publish}))
        state, _ = take(state, c.Published(2.0), c.Fleet(3.0, SEVEN), c.Pushed(3.0))
    return kept


@pytest.mark.parametrize("text", ["momentum:0.9", "adam:0.05", "yogi:0.05", "median", "clip:0.5"])
def test_a_round_is_replayed_from_its_updates_and_the_memory_before_it(text: str) -> None:
    for start, memory, found in three_rounds(read_rule(text)):
        publish: c.Publish = found["publish"]
        draft = c.step(found["state"], found["last"])[0]
        updates = dict(sorted(draft.accepted.items(), reverse=True))
        closed = rule_of(read_rule(text)).close(start, updates, memory)
        assert publish.release is not None
        assert next_release(start, closed.mean, {}).digest == publish.release.digest
        assert closed.memory.digest == publish.record.memory.digest


def test_moments_reach_the_next_round() -> None:
    kept = three_rounds(read_rule("momentum:0.9"))
    assert [memory.steps for _, memory, _ in kept] == [0, 1, 2]
    assert [found["publish"].record.rule["steps"] for *_, found in kept] == [1, 2, 3]
    first, second = (kept[n + 1][0].state.flat() - kept[n][0].state.flat() for n in (0, 1))
    assert np.linalg.norm(second) > 1.5 * np.linalg.norm(first)
