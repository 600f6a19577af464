"""When a private core is learned: by the owner's policy, behind every message, and not in vain."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.answering.world import Cadence
from clients.agent.drifting.settings import Drift
from clients.agent.power.readings import Readings
from clients.agent.private import cores as module
from clients.agent.private.record import unpack
from fleet.errors import RoundError
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    Turned,
    device_config,
)
from tests.clients.agent.private.wearing import ON, Wearer, wear, worn

NOTHING = Payload(np.zeros(0, np.float32), {})


@pytest.mark.parametrize(
    ("policy", "readings", "code"),
    [
        ({}, Readings(temperature_c=90.0), "too-hot"),
        ({"only_on_mains": True}, Readings(on_mains=False), "on-battery"),
        ({"allowed_hours": ("22:00-06:00",)}, Readings(), "outside-hours"),
    ],
)
def test_the_owners_policy_holds_and_is_asked_again_only_after_a_while(
    wearer: Wearer,
    turned: Turned,
    releases: list[Release],
    policy: dict[str, Any],
    readings: Readings,
    code: str,
) -> None:
    config = wearer.device.config
    rules = config[0].policy
    config[0] = config[0].model_copy(update={"policy": rules.model_copy(update=policy)})
    turned.readings = readings
    assert wearer.cores.look() == code
    assert wearer.device.store.personal.get() is None
    config[0] = config[0].model_copy(update={"policy": rules})
    turned.readings = Readings(temperature_c=40.0, on_mains=True)
    assert wearer.cores.look() == "later"
    turned.seconds += module.AGAIN_S
    assert wearer.cores.look() == "trained"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"drift": Drift(watch=True, participate="drift", rounds=1)}, "no-drift"),
        ({"policy": device_config(label_rounds=1).policy}, "no-new-labels"),
    ],
)
def test_what_makes_a_round_of_the_fleet_not_worth_it_does_not_keep_it_from_learning(
    dressed: Path,
    tmp_path: Path,
    turned: Turned,
    releases: list[Release],
    rule: dict[str, Any],
    code: str,
) -> None:
    state = Path(shutil.copytree(dressed, tmp_path / "state"))
    often = turned.world(cadence=Cadence(look_s=0.0))  # the policy is asked after each step too
    with worn(state, often) as wearer:
        config = wearer.device.config
        config[0] = config[0].model_copy(update=rule)
        wearer.device.agent.watch()
        wearer.bring(releases[1])
        decision = wearer.device.agent.training.decide()
        assert [reason.value for reason in decision.reasons] == [code]
        assert wearer.cores.look() == "trained"


def test_its_seconds_count_to_the_days_and_the_memory_budget_holds(
    wearer: Wearer, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = module.learned

    def learned(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["memory_budget"])
        turned.seconds += 7.0
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "learned", learned)
    assert wearer.cores.look() == "trained"
    assert wearer.device.store.state.get("training.today")["seconds"] == 7.0
    assert seen == [wearer.device.config[0].policy.memory_budget_bytes]


def test_a_message_that_waits_goes_first_and_the_training_goes_on_to_the_same_bits(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    cores: list[str] = []
    for number, interrupted in enumerate((False, True)):
        place = Path(shutil.copytree(state, tmp_path / f"device-{number}"))
        with worn(place, turned.world()) as wearer:
            if interrupted:
                for _ in range(3):  # each time a step further
                    waiting = pytest.MonkeyPatch()
                    waiting.setattr(type(wearer.device.agent), "wanted", Later(1))
                    assert wearer.cores.look() == "agent-wanted"
                    waiting.undo()
                assert wearer.device.store.personal_checkpoints.plan() is not None
            assert wearer.cores.look() == "trained"
            assert wearer.device.store.personal_checkpoints.plan() is None
            cores.append(unpack(wearer.row.payload).digest)
    assert cores[0] == cores[1]


class Later:
    """An agent that is wanted after so many looks."""

    def __init__(self, free: int) -> None:
        self._free = free

    def __get__(self, *_: object) -> bool:
        self._free -= 1
        return self._free < 0


def test_it_never_begins_while_the_agent_is_at_work(
    wearer: Wearer, releases: list[Release]
) -> None:
    with wearer.device.agent.aside() as alone:
        assert alone
        assert wearer.cores.look() == "busy"
    assert wearer.device.store.personal.get() is None
    assert wearer.cores.look() == "trained"


def test_a_message_waits_for_work_aside_to_end_instead_of_being_told_not_now(
    wearer: Wearer, releases: list[Release]
) -> None:
    agent = wearer.device.agent
    with ThreadPoolExecutor(1) as pool:
        with agent.aside():
            asked = pool.submit(wearer.serve, releases[1])
            while not agent.wanted:
                assert not asked.done()
        asked.result(timeout=60)
    assert not agent.wanted
    assert agent.idle.is_set()


@pytest.mark.parametrize("what", ["release", "plan", "windows"])
def test_without_a_release_a_plan_or_enough_windows_there_is_nothing_to_learn(
    dressed: Path, tmp_path: Path, turned: Turned, releases: list[Release], what: str
) -> None:
    state = Path(shutil.copytree(dressed, tmp_path / "state"))
    with worn(state, turned.world()) as wearer:
        if what == "plan":
            wearer.serve(releases[1])
        elif what == "windows":
            wearer.bring(releases[1])
            wearer.set(ON.model_copy(update={"min_windows": 81}))
        expected = {"release": "no-release", "plan": "no-plan", "windows": "few-windows"}
        assert wearer.cores.look() == expected[what]
        assert wearer.device.store.personal.get() is None
        assert not wearer.model().personal


def test_a_training_that_diverges_is_not_tried_again_on_the_same_windows(
    wearer: Wearer, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:

    def diverge(*args: Any, **kwargs: Any) -> Any:
        raise RoundError("training-diverged", "not finite")

    with monkeypatch.context() as patched:
        patched.setattr(module, "learned", diverge)
        assert wearer.cores.look() == "training-diverged"
    turned.seconds += module.AGAIN_S
    assert wearer.cores.look() == "training-diverged"
    assert len(turned.said("personal.started")) == 1
    wear(wearer.state, seed=1)
    assert wearer.cores.look() == "trained"
