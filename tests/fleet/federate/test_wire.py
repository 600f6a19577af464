from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError

from fleet.adapt.state import CoreState
from fleet.errors import MismatchError
from fleet.federate.records import WIRE_FORMAT, DeviceStatus, Plan
from fleet.federate.wire import (
    Payload,
    Update,
    decode_plan,
    decode_state,
    decode_update_header,
    encode_plan,
    encode_state,
    encode_update,
)
from tests.fleet.federate.factories import LAYOUT, make_header, make_plan

flats = hnp.arrays(np.float32, LAYOUT.size, elements=st.floats(width=32, allow_nan=False))


def as_sent(payload: Payload) -> Payload:
    """Return what is left of a payload after a wire of bytes and JSON."""
    array = np.frombuffer(payload.array.tobytes(), "<f4")
    return Payload(array, json.loads(json.dumps(dict(payload.config))))


@given(flats)
def test_a_plan_comes_back_equal_with_its_state(flat: NDArray[np.float32]) -> None:
    state = CoreState.from_flat(LAYOUT, flat)
    plan = make_plan(state=state.digest)
    sent = as_sent(encode_plan(plan, state))
    assert decode_plan(sent) == plan
    assert decode_plan(sent).id == plan.id
    assert decode_state(sent, LAYOUT).digest == state.digest


@given(flats)
def test_an_update_comes_back_equal(flat: NDArray[np.float32]) -> None:
    delta = CoreState.from_flat(LAYOUT, flat)
    header = make_header(make_plan())
    sent = as_sent(encode_update(Update(header, delta)))
    assert decode_update_header(sent.config) == header
    assert decode_state(sent, LAYOUT).digest == delta.digest


@given(flats)
def test_a_state_comes_back_equal_under_the_digest_of_its_layout(flat: NDArray[np.float32]) -> None:
    state = CoreState.from_flat(LAYOUT, flat)
    sent = as_sent(encode_state(state, {"release": 3}))
    assert decode_state(sent, LAYOUT).digest == state.digest
    assert sent.config == {"format": WIRE_FORMAT, "layout": LAYOUT.digest, "release": 3}


def test_the_identity_of_a_state_cannot_be_overwritten() -> None:
    sent = encode_state(CoreState.zero(LAYOUT), {"layout": "mine", "format": 9})
    assert sent.config == {"format": WIRE_FORMAT, "layout": LAYOUT.digest}


def test_every_direction_carries_one_array_of_four_bytes_an_entry() -> None:
    state = CoreState.zero(LAYOUT, np.float64)
    plan = make_plan()
    for payload in (
        encode_plan(plan, state),
        encode_update(Update(make_header(plan), state)),
        encode_state(state, {}),
    ):
        assert payload.array.dtype == np.dtype("<f4")
        assert payload.array.shape == (LAYOUT.size,)
        assert payload.array.nbytes == 4 * LAYOUT.size
        assert all(isinstance(v, (str, int, float, bytes, bool)) for v in payload.config.values())


@pytest.mark.parametrize(("found", "side"), [(0, "sender"), (-1, "sender"), (2, "receiver")])
def test_another_wire_format_tells_which_side_to_upgrade(found: int, side: str) -> None:
    plan, state = make_plan(), CoreState.zero(LAYOUT)
    for payload, read in (
        (encode_plan(plan, state), decode_plan),
        (encode_state(state, {}), lambda p: decode_state(p, LAYOUT)),
        (
            encode_update(Update(make_header(plan), state)),
            lambda p: decode_update_header(p.config),
        ),
    ):
        skewed = Payload(payload.array, {**payload.config, "format": found})
        with pytest.raises(MismatchError, match=f"speaks wire format {WIRE_FORMAT}") as refused:
            read(skewed)  # type: ignore[operator]
        assert refused.value.code == "wire-format"
        assert side in refused.value.hint
        assert str(found) in refused.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"round": 1}', "[" * 5000])
def test_a_plan_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MismatchError) as refused:
        decode_plan(Payload(np.zeros(0, np.float32), {"format": WIRE_FORMAT, "plan": text}))
    assert refused.value.code == "plan-malformed"


def test_all_problems_of_a_header_are_told_at_once() -> None:
    config = {**make_header(make_plan()).model_dump(), "steps": -1, "base": "x", "more": 1}
    with pytest.raises(MismatchError) as refused:
        decode_update_header(config)
    assert all(name in refused.value.message for name in ("steps", "base", "more"))


def test_a_state_of_another_dtype_or_size_is_refused() -> None:
    config = encode_state(CoreState.zero(LAYOUT), {}).config
    with pytest.raises(MismatchError) as dtype:
        decode_state(Payload(np.zeros(LAYOUT.size), config), LAYOUT)  # type: ignore[arg-type]
    with pytest.raises(MismatchError) as size:
        decode_state(Payload(np.zeros(LAYOUT.size + 1, np.float32), config), LAYOUT)
    assert (dtype.value.code, size.value.code) == ("wire-dtype", "layout-size")


OTHER: dict[str, Any] = {
    "round": 2,
    "base": "c" * 64,
    "frame": "c" * 64,
    "layout": "c" * 64,
    "release": 1,
    "state": "c" * 64,
    "method": "head",
    "rank": 3,
    "epochs": 2,
    "batch": 33,
    "optimiser": "adam",
    "learning_rate": 0.2,
    "momentum": 0.8,
    "seed": 1,
    "weight_cap": 4095,
    "deadline_s": 601.0,
    "max_steps": 7,
    "memory_budget": 1 << 20,
    "compression": "int4",
    "anchor": 0.1,
    "ewc": 0.1,
    "distil": 0.1,
}


def test_the_id_of_a_plan_is_this_literal() -> None:
    plan = make_plan(layout="d" * 64, state="e" * 64)
    assert plan.id == "9b3b8e7a91427c9b"
    assert make_plan(layout="d" * 64, state="e" * 64).id == plan.id


def test_the_id_of_a_plan_changes_with_each_of_its_fields() -> None:
    assert set(OTHER) == set(Plan.model_fields)
    ids = {make_plan(**{name: value}).id for name, value in OTHER.items()}
    assert len(ids | {make_plan().id}) == len(OTHER) + 1


def test_a_changed_copy_of_a_plan_has_an_id_of_its_own() -> None:
    plan = make_plan()
    known = plan.id
    assert plan.model_copy(update={"round": 2}).id != known


@pytest.mark.parametrize(
    "broken",
    [
        {"round": 0},
        {"round": 10**9 + 1},
        {"release": 2**63},
        {"max_steps": 2**63},
        {"rank": 0},
        {"weight_cap": 4097},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"deadline_s": float("inf")},
        {"momentum": 1.0},
        {"optimiser": "lbfgs"},
        {"state": "E" * 64},
        {"unknown": 1},
    ],
)
def test_a_plan_that_breaks_a_rule_cannot_be_made(broken: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_plan(**broken)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_plan().round = 2  # type: ignore[misc]


def test_a_device_with_a_reason_is_not_usable() -> None:
    assert DeviceStatus(device="a", train_windows=1, test_windows=0).usable
    assert not DeviceStatus(device="a", train_windows=0, test_windows=0, reason="none").usable


def test_a_device_that_serves_nothing_says_what_it_said_before_there_was_serving() -> None:
    status = DeviceStatus(device="a", train_windows=1, test_windows=0)
    said = {"device": "a", "train_windows": 1, "test_windows": 0, "reason": ""}
    assert status.model_dump(mode="json") == said
    assert DeviceStatus.model_validate(said) == status
    assert (status.serves, status.release, status.version) == ("", -1, "")


def test_what_a_device_serves_comes_back_equal() -> None:
    fields = {"device": "a", "train_windows": 1, "test_windows": 0, "reason": "no new labels"}
    serving = {"serves": "5e" * 32, "release": 0, "version": "0.1.0"}
    status = DeviceStatus.model_validate({**fields, **serving})
    assert status.model_dump(mode="json") == {**fields, **serving}


@pytest.mark.parametrize(
    "wrong", [{"serves": "5e"}, {"release": -2}, {"version": "1" * 65}, {"more": ""}]
)
def test_a_status_that_breaks_a_rule_is_refused(wrong: dict[str, object]) -> None:
    fields = {"device": "a", "train_windows": 1, "test_windows": 0}
    with pytest.raises(ValidationError):
        DeviceStatus.model_validate({**fields, **wrong})


def test_records_wire_and_errors_need_no_torch() -> None:
    code = (
        "import sys, fleet.errors, fleet.federate.records, fleet.federate.wire;"
        "sys.exit(bool({'torch', 'flwr', 'grpc', 'typer'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
