from __future__ import annotations

import numpy as np
import pytest

from clients import bridge
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.errors import InputError, MismatchError, StorageError
from fleet.federate.records import UpdateHeader
from fleet.federate.releases import first_release
from fleet.federate.wire import Payload, decode_plan, encode_plan, encode_state
from fleet.har.population import Population
from fleet.peft.registry import find
from server import coordinator as c
from server.app import task_of
from server.rounds import Shell
from simulations.cohort.batched import BatchedFleet
from simulations.cohort.fleet import LearnerFleet, attempt
from simulations.cohort.grid import CohortGrid
from simulations.inprocess import InProcessGrid
from simulations.local import _plan
from tests.simulations.cohort.fake_fleet import Kept
from tests.simulations.tiny_fleet import RATE, MakeConfig

DEVICES = 3


def shell_run(
    grid: InProcessGrid | CohortGrid, base: Base, make_config: MakeConfig, method: str
) -> Kept:
    kept = Kept()
    task = task_of(make_config(), base, find(method), RATE)
    rules = c.Rules(rounds=2, minimum=DEVICES, deadline_s=60.0, wait_s=30.0)
    shell = Shell(grid, grid.clock, grid.wait, kept, method, weigh=grid.weigh)
    shell.run(c.begin(rules, task, first_release(base, method, task.layout)))
    return kept


def plan_message(base: Base, make_config: MakeConfig, method: str = "core") -> Payload:
    task = task_of(make_config(), base, find(method), RATE)
    state = CoreState.zero(task.layout)
    return encode_plan(_plan(base, task, state, 1), state)


@pytest.mark.parametrize("method", ["core", "head"])
def test_real_learners_end_in_the_same_releases_and_bytes_behind_both_grids(
    tiny_base: Base, make_config: MakeConfig, method: str
) -> None:
    values = make_config().for_flower()
    slow = InProcessGrid(bridge.app, DEVICES, run_config=values)
    fast = CohortGrid(LearnerFleet(values), DEVICES, run_config=values)
    expected = shell_run(slow, tiny_base, make_config, method)
    found = shell_run(fast, tiny_base, make_config, method)
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases]
    assert found.evaluations == expected.evaluations
    assert found.traffic == expected.traffic
    assert fast.ledger == slow.ledger


@pytest.mark.parametrize("method", ["core", "bias", "head", "full"])
def test_the_batched_fleet_answers_as_the_learners_do_up_to_rounding(
    tiny_base: Base, make_config: MakeConfig, method: str
) -> None:
    values, message = make_config().for_flower(), plan_message(tiny_base, make_config, method)
    partitions = [2, 0, 1]
    expected = LearnerFleet(values).train(message, partitions)
    found = BatchedFleet(values).train(message, partitions)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Payload)
        assert isinstance(other, Payload)
        np.testing.assert_allclose(one.array, other.array, rtol=1e-3, atol=1e-5)
        header, wanted = (UpdateHeader.model_validate(dict(p.config)) for p in (one, other))
        assert header.model_copy(update={"loss": 0.0}) == wanted.model_copy(update={"loss": 0.0})
        assert header.loss == pytest.approx(wanted.loss, rel=1e-4)


def test_a_device_without_budget_for_a_batch_is_left_to_its_learner(
    tiny_base: Base, make_config: MakeConfig
) -> None:
    values = make_config(memory_budget=2**24).for_flower()
    message = plan_message(tiny_base, make_config)
    (found,) = BatchedFleet(values).train(message, [1])
    (expected,) = LearnerFleet(values).train(message, [1])
    assert isinstance(found, Payload)
    assert isinstance(expected, Payload)
    assert found.array.tobytes() == expected.array.tobytes()


def test_the_batched_fleet_judges_as_the_learners_do(
    tiny_base: Base, make_config: MakeConfig
) -> None:
    values = make_config().for_flower()
    task = task_of(make_config(), tiny_base, find("core"), RATE)
    state = encode_state(CoreState.zero(task.layout), {"base": tiny_base.digest, "method": "core"})
    expected = LearnerFleet(values).evaluate(state, [0, 2])
    for one, other in zip(BatchedFleet(values).evaluate(state, [0, 2]), expected, strict=True):
        np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_declines_alone(
    tiny_base: Base, make_config: MakeConfig, tiny_people: Population
) -> None:
    values, message = make_config().for_flower(), plan_message(tiny_base, make_config)
    for fleet in (LearnerFleet(values), BatchedFleet(values)):
        first, second = fleet.train(message, [0, len(tiny_people.fleet)])
        assert isinstance(first, Payload)
        assert isinstance(second, MismatchError)
        assert second.code == "no-such-person"


@pytest.mark.parametrize("method", ["core", "full"])
def test_a_plan_with_guards_is_declined_by_everybody_behind_both_grids(
    tiny_base: Base, make_config: MakeConfig, method: str
) -> None:
    message = plan_message(tiny_base, make_config, method)
    plan = decode_plan(message).model_copy(update={"anchor": 0.1})
    layout = task_of(make_config(), tiny_base, find(method), RATE).layout
    guarded, values = encode_plan(plan, CoreState.zero(layout)), make_config().for_flower()
    for fleet in (LearnerFleet(values), BatchedFleet(values)):
        for each in fleet.train(guarded, [0, 1]):
            assert isinstance(each, MismatchError)
            assert each.code == "guards-unsupported"


def test_a_plan_of_another_base_is_declined_by_everybody(
    tiny_base: Base, make_config: MakeConfig
) -> None:
    message = plan_message(tiny_base, make_config)
    plan = decode_plan(message).model_copy(update={"base": "f" * 64})
    task = task_of(make_config(), tiny_base, find("core"), RATE)
    other = encode_plan(plan, CoreState.zero(task.layout))
    values = make_config().for_flower()
    for each in LearnerFleet(values).train(other, [0, 1]):
        assert isinstance(each, InputError)
        assert each.code == "wrong-base"
    with pytest.raises(MismatchError, match="the message is for base"):
        BatchedFleet(values).train(other, [0, 1])


def test_an_attempt_returns_errors_but_not_those_that_end_a_run() -> None:
    def fail(code: str) -> None:
        raise StorageError(code, "a file could not be written")

    assert isinstance(attempt(fail, "torn-file"), StorageError)
    with pytest.raises(StorageError):
        attempt(fail, "disk-full")
