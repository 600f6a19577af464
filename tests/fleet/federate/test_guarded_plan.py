"""A plan says which guards hold a training back; one that asks for none is as it ever was."""

from __future__ import annotations

import numpy as np
import pytest

from fleet.adapt.state import CoreState
from fleet.continual.options import ContinualOptions
from fleet.errors import MismatchError
from fleet.federate.records import GUARDS, Plan
from fleet.federate.wire import WIRE_FORMAT, Payload, decode_plan, encode_plan
from tests.fleet.federate.factories import make_plan

A, B, C, D = (one * 64 for one in "abcd")
OLD = (
    f'{{"base":"{A}","batch":32,"deadline_s":600.0,"epochs":1,"frame":"{B}","layout":"{C}",'
    '"learning_rate":0.05,"max_steps":0,"memory_budget":0,"method":"core","momentum":0.9,'
    f'"optimiser":"sgd","rank":4,"release":0,"round":1,"seed":0,"state":"{D}","weight_cap":4096}}'
)
STATE = CoreState.of({"core": np.zeros(3, np.float32)})
OLD_ID = "f44a097682281a31"


def test_a_plan_without_guards_has_the_bytes_and_the_id_that_it_had_before_there_were_any() -> None:
    plan = Plan.model_validate_json(OLD)
    message = encode_plan(plan, STATE)
    assert message.config["plan"] == OLD
    assert plan.id == OLD_ID
    assert plan.model_copy(update=dict.fromkeys(GUARDS, 0.0)).id == OLD_ID


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_is_carried_and_makes_another_plan(name: str) -> None:
    plan = Plan.model_validate_json(OLD).model_copy(update={name: 0.25})
    found = decode_plan(encode_plan(plan, STATE))
    assert found == plan
    assert getattr(found, name) == 0.25
    assert found.id == plan.id != OLD_ID
    assert set(plan.model_dump()) - set(Plan.model_validate_json(OLD).model_dump()) == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [("anchor", -0.1), ("ewc", 1.1e6), ("distil", 1.1e3), ("anchor", "NaN"), ("ewc", "Infinity")],
)
def test_strengths_have_the_bounds_of_the_simulations_options(
    name: str, value: float | str
) -> None:
    record = OLD[:-1] + f',"{name}":{value}}}'
    with pytest.raises(MismatchError) as caught:
        decode_plan(Payload(STATE.flat(), {"format": WIRE_FORMAT, "plan": record}))
    assert caught.value.code == "plan-malformed"
    for edge in (0.0, 1e6 if name != "distil" else 1e3):
        assert getattr(ContinualOptions.parse({name: edge}), name) == edge
        assert getattr(Plan.model_validate({**make_plan().model_dump(), name: edge}), name) == edge
