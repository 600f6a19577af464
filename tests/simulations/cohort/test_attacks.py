from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from fleet.errors import InputError, RoundError
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.releases import first_release
from fleet.federate.wire import Payload, encode_plan
from server import coordinator as c
from simulations.cohort.attacks import AttackedFleet, sign_flip
from simulations.cohort.grid import CohortGrid
from tests.fleet.federate.factories import LAYOUT, make_base
from tests.simulations.cohort.fake_fleet import FakeFleet, Kept, name, run

DEVICES = range(4)


def plan_and_message() -> tuple[c.Push, Payload]:
    task = c.Task("core", 2, LAYOUT, "sgd", 0.1, 0.9, 1, 32, 4096, 0)
    release = first_release(make_base(), "core", LAYOUT)
    _, (push,) = c.step(c.begin(c.Rules(1), task, release), c.Fleet(0.0, tuple(map(name, DEVICES))))
    assert isinstance(push, c.Push)
    return push, encode_plan(push.plan, push.release.state)


def arrays(answers: list[Payload | Exception]) -> Mapping[int, np.ndarray]:
    return {n: each.array for n, each in enumerate(answers) if isinstance(each, Payload)}


def test_attackers_send_what_is_forged_and_the_others_what_they_learned() -> None:
    _, message = plan_and_message()
    honest = arrays(FakeFleet().train(message, DEVICES))
    sent = arrays(AttackedFleet(FakeFleet(), {1, 3}, sign_flip(6)).train(message, DEVICES))
    for device in DEVICES:
        wanted = honest[device] * np.float32(-6 if device in (1, 3) else 1)
        np.testing.assert_array_equal(sent[device], wanted)
        assert sent[device].dtype == np.float32


def test_a_forged_update_passes_admission_because_only_its_array_lies() -> None:
    push, message = plan_and_message()
    (answer,) = AttackedFleet(FakeFleet(), {2}, sign_flip(6)).train(message, [2])
    assert isinstance(answer, Payload)
    assert isinstance(admit(answer, push.plan, LAYOUT, name(2), Bounds()), Admitted)


def test_an_attacker_without_an_update_has_none_to_forge() -> None:
    _, message = plan_and_message()
    fleet = FakeFleet(faults={1: lambda: RoundError("away", "not here")})
    answers = AttackedFleet(fleet, {1}, sign_flip(1)).train(message, DEVICES)
    assert isinstance(answers[1], RoundError)


def test_attackers_judge_and_introduce_themselves_honestly() -> None:
    _, message = plan_and_message()
    attacked, honest = AttackedFleet(FakeFleet(), DEVICES, sign_flip(9)), FakeFleet()
    for one, other in zip(
        attacked.evaluate(message, DEVICES), honest.evaluate(message, DEVICES), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert attacked.status(3).config == honest.status(3).config


def test_an_attacked_fleet_takes_part_in_whole_runs_behind_the_grid() -> None:
    def last(attackers: set[int]) -> np.ndarray:
        # Where all lie alike, the mean is turned round.
        fleet = AttackedFleet(FakeFleet(), attackers, sign_flip(1))
        kept: Kept = run(CohortGrid(fleet, 4), minimum=4, rounds=1)
        return kept.releases[-1].state.flat()

    np.testing.assert_allclose(last({0, 1, 2, 3}), -last(set()), atol=1e-9)


@pytest.mark.parametrize("factor", [0.0, -2.0, float("nan")])
def test_a_sign_flip_without_a_positive_factor_is_refused(factor: float) -> None:
    with pytest.raises(InputError) as caught:
        sign_flip(factor)
    assert caught.value.code == "attack"
