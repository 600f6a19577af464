from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fleet.adapt.state import CoreState
from fleet.federate.admission import Admitted, Bounds, Reason, Refused, admit
from fleet.federate.aggregate import quantise
from fleet.federate.wire import Payload
from tests.fleet.federate.factories import DEVICE, LAYOUT, make_payload, make_plan

PLAN = make_plan()
SIZE = LAYOUT.size


def judge(payload: Payload, bounds: Bounds | None = None) -> Admitted | Refused:
    return admit(payload, PLAN, LAYOUT, DEVICE, bounds or Bounds())


def with_entry(value: float) -> NDArray[np.float32]:
    flat = np.zeros(SIZE, np.float32)
    flat[SIZE // 2] = value
    return flat


def test_an_honest_update_is_admitted_as_quantised_with_its_identity() -> None:
    flat = np.linspace(-1, 1, SIZE, dtype=np.float32)
    verdict = judge(make_payload(PLAN, flat))
    assert isinstance(verdict, Admitted)
    assert verdict.steps.tolist() == quantise(flat).tolist()
    assert verdict.digest == CoreState.from_flat(LAYOUT, flat).digest
    assert verdict.norm == pytest.approx(float(np.linalg.norm(flat.astype(np.float64))))
    assert (verdict.weight, verdict.header.device) == (10, DEVICE)


HOSTILE_CONFIGS: list[tuple[Reason, dict[str, Any]]] = [
    (Reason.malformed, {"format": 0}),
    (Reason.malformed, {"format": 2}),
    (Reason.malformed, {"format": "1"}),
    (Reason.malformed, {"extra": 1}),
    (Reason.malformed, {"examples": "many"}),
    (Reason.malformed, {"examples": 1.5}),
    (Reason.malformed, {"steps": -1}),
    (Reason.malformed, {"loss": float("nan")}),
    (Reason.malformed, {"loss": float("inf")}),
    (Reason.malformed, {"loss": "NaN"}),
    (Reason.malformed, {"device": ""}),
    (Reason.malformed, {"device": "x" * 129}),
    (Reason.malformed, {"base": "short"}),
    (Reason.wrong_plan, {"plan": "0" * 16}),
    (Reason.wrong_device, {"device": "person-08"}),
    (Reason.wrong_base, {"base": "0" * 64}),
    (Reason.wrong_frame, {"frame": "0" * 64}),
    (Reason.wrong_layout, {"layout": "0" * 64}),
    (Reason.implausible_examples, {"examples": 0}),
    (Reason.implausible_examples, {"examples": -1}),
    (Reason.implausible_examples, {"examples": 10**12}),
]


@pytest.mark.parametrize(("reason", "changes"), HOSTILE_CONFIGS)
def test_a_config_with_one_lie_is_refused_for_it(reason: Reason, changes: dict[str, Any]) -> None:
    verdict = judge(make_payload(PLAN, None, **changes))
    assert isinstance(verdict, Refused)
    assert verdict.reason is reason
    assert verdict.detail


@pytest.mark.parametrize("key", sorted(make_payload(PLAN).config))
def test_a_config_without_one_of_its_keys_is_refused(key: str) -> None:
    payload = make_payload(PLAN)
    config = {name: value for name, value in payload.config.items() if name != key}
    verdict = judge(Payload(payload.array, config))
    assert isinstance(verdict, Refused)
    assert verdict.reason is Reason.malformed


HOSTILE_ARRAYS: list[tuple[Reason, NDArray[Any]]] = [
    (Reason.wrong_dtype, np.zeros(SIZE, np.float64)),
    (Reason.wrong_dtype, np.zeros(SIZE, np.float16)),
    (Reason.wrong_dtype, np.zeros(SIZE, np.int64)),
    (Reason.wrong_dtype, np.zeros(SIZE, ">f4")),
    (Reason.wrong_dtype, np.zeros(SIZE, "U1")),
    (Reason.wrong_shape, np.zeros(SIZE - 1, np.float32)),
    (Reason.wrong_shape, np.zeros(SIZE + 1, np.float32)),
    (Reason.wrong_shape, np.zeros(0, np.float32)),
    (Reason.wrong_shape, np.zeros((1, SIZE), np.float32)),
    (Reason.wrong_shape, np.zeros((), np.float32)),
    (Reason.not_finite, with_entry(np.nan)),
    (Reason.not_finite, with_entry(np.inf)),
    (Reason.not_finite, with_entry(-np.inf)),
    (Reason.entry_too_large, with_entry(9.0)),
    (Reason.entry_too_large, with_entry(-9.0)),
    (Reason.entry_too_large, with_entry(float(np.nextafter(np.float32(8), np.float32(9))))),
    (Reason.entry_too_large, with_entry(3e38)),
]


@pytest.mark.parametrize(("reason", "array"), HOSTILE_ARRAYS)
def test_an_array_that_breaks_a_rule_is_refused_for_it(reason: Reason, array: Any) -> None:
    verdict = judge(make_payload(PLAN, array))
    assert isinstance(verdict, Refused)
    assert verdict.reason is reason
    assert verdict.detail


def test_a_norm_beyond_the_bound_is_refused_and_none_admits_any() -> None:
    payload = make_payload(PLAN, np.full(SIZE, 2, np.float32))
    norm = float(np.sqrt(4 * SIZE))
    verdict = judge(payload, Bounds(largest_norm=norm - 1e-6))
    assert isinstance(verdict, Refused)
    assert verdict.reason is Reason.over_norm
    assert isinstance(judge(payload, Bounds(largest_norm=norm)), Admitted)
    assert isinstance(judge(payload, Bounds(largest_norm=None)), Admitted)


@pytest.mark.parametrize(("examples", "weight"), [(1, 1), (50, 50), (51, 50), (10**6, 50)])
def test_the_weight_is_capped_by_the_plan(examples: int, weight: int) -> None:
    plan = make_plan(weight_cap=50)
    verdict = admit(make_payload(plan, None, examples=examples), plan, LAYOUT, DEVICE, Bounds())
    assert isinstance(verdict, Admitted)
    assert verdict.weight == weight


@given(hnp.arrays(np.float32, SIZE, elements=st.floats(-8, 8, width=32)))
def test_admitted_steps_are_the_quantised_delta(flat: NDArray[np.float32]) -> None:
    verdict = judge(make_payload(PLAN, flat))
    assert isinstance(verdict, Admitted)
    assert verdict.steps.tolist() == quantise(flat).tolist()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v),
    max_leaves=5,
)
honest_keys = st.sampled_from(sorted(make_payload(PLAN).config))


@settings(max_examples=200)
@given(st.dictionaries(honest_keys | st.text(max_size=8), values, max_size=6), st.booleans())
def test_admitting_never_raises_for_any_json_like_config(
    changes: dict[str, Any], from_honest: bool
) -> None:
    payload = make_payload(PLAN)
    config = {**payload.config, **changes} if from_honest else changes
    assert isinstance(judge(Payload(payload.array, config)), Admitted | Refused)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int32, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=SIZE),
    )
)
def test_admitting_never_raises_for_any_numeric_array(array: NDArray[Any]) -> None:
    assert isinstance(judge(make_payload(PLAN, array)), Admitted | Refused)


def test_a_count_of_ten_thousand_digits_is_refused_like_any_other() -> None:
    verdict = judge(make_payload(PLAN, None, examples=10**10_000))
    assert isinstance(verdict, Refused)
