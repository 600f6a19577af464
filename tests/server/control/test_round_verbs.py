from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fleet.errors import FleetError
from fleet.federate.releases import Release
from server.control import requests as r
from server.control.verbs.fleet import Fleet
from tests.server.control.controlling import ask
from tests.server.registry.filled import (
    DEVICES,
    FIRST,
    Clock,
    answer,
    opened,
    plan_from,
)


def test_a_replay_is_the_release_and_without_a_device_it_is_not(fleet: Fleet) -> None:
    assert ask(fleet, r.RoundReplay(round=2))["same"] is True
    same = ask(fleet, r.RoundReplay(round=2))["distance"]
    assert same == {"largest": 0.0, "cosine": pytest.approx(1.0)}
    told = ask(fleet, r.RoundReplay(round=2, without=("ada",)))
    assert (told["same"], told["devices"]) == (False, ["bob"])


def test_a_replay_by_another_rule_tells_how_far_it_is_from_the_record(
    fleet: Fleet, releases: list[Release]
) -> None:
    told = ask(fleet, r.RoundReplay(round=1, rule="median"))
    assert (told["same"], told["rule"]) == (False, "median")
    plan = plan_from(FIRST, 1)
    updates = [answer(plan, device)[0] for device in DEVICES]
    step = np.median([each.steps for each in updates], axis=0) / 2**32
    recorded = flat(releases[1]) - flat(releases[0])
    assert told["distance"]["largest"] == pytest.approx(abs(step - recorded).max(), abs=1e-6)
    cosine = step @ recorded / np.linalg.norm(step) / np.linalg.norm(recorded)
    assert told["distance"]["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert 0.1 < cosine < 0.999
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.RoundReplay(round=1, rule="nonsense"))
    assert refused.value.exit_code == 4


def flat(release: Release) -> NDArray[np.float64]:
    return np.concatenate([a.astype(float).ravel() for a in release.state.arrays.values()])


def test_a_round_tells_who_answered_what(fleet: Fleet) -> None:
    found = ask(fleet, r.RoundShow(round=2))["round"]
    assert [each["device"] for each in found["updates"]] == ["ada", "bob"]
    assert [(each["device"], each["reason"]) for each in found["refusals"]] == [
        ("cyd", "not-finite")
    ]
    assert (found["asked"], found["accepted"], found["refused"]) == (3, 2, 1)
    assert (found["unanswered"], found["seconds"], found["traffic"]) == (
        [],
        5.0,
        {"bytes_up": 1280},
    )


def test_a_list_of_rounds_counts_without_reading_the_updates(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*_: object) -> None:
        raise AssertionError("the updates were read")

    monkeypatch.setattr("server.registry.rounds.updates_of", reading)
    rounds = ask(fleet, r.RoundList())["rounds"]
    assert [(row["accepted"], row["refused"]) for row in rounds] == [(3, 0), (2, 1)]


def test_a_start_and_an_abort_are_orders_to_the_service(
    fleet: Fleet, releases: list[Release], clock: Clock
) -> None:
    assert ask(fleet, r.RoundStart(key="k1"))["service_alive_at"] is None
    fleet.registry.observations.beat(pid=1, version="0", started_at_s=clock.now_s, doing={})
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.RoundAbort(key="k2"))
    assert refused.value.code == "no-open-round"
    opened(fleet.registry, releases[2], 3)
    told = ask(fleet, r.RoundAbort(key="k3", why="stuck"))
    assert told["touches"]["devices"] == ["ada", "bob", "cyd"]
    assert told["service_alive_at"] is not None
    waiting = fleet.registry.orders.waiting()
    assert [(each.verb.value, dict(each.args)) for each in waiting] == [
        ("start_round", {}),
        ("abort_round", {"reason": "stuck"}),
    ]
