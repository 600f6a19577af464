from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fleet.adapt.state import CoreState
from fleet.errors import MismatchError
from fleet.federate.admission import Admitted, Bounds, Reason, Refused, admit
from fleet.federate.aggregate import PartialSum
from fleet.federate.compress import (
    BLOCK_ENTRIES,
    LEVELS,
    SMALLEST_SCALE,
    Encoding,
    compressed,
    decompressed,
    packed_bytes,
)
from fleet.federate.wire import Payload, Update, encode_update
from tests.fleet.federate.factories import LAYOUT, make_header, make_plan

hows = st.sampled_from(["int8", "int4"])
flats = hnp.arrays(
    np.float32, st.integers(0, 3 * BLOCK_ENTRIES), elements=st.floats(-8, 8, width=32)
)


def scales_of(flat: NDArray[np.float32], how: Encoding) -> NDArray[np.float64]:
    """The step of each entry, from the definition."""
    blocks = [flat[at : at + BLOCK_ENTRIES] for at in range(0, len(flat), BLOCK_ENTRIES)]
    steps = [np.full(len(each), np.abs(each).max() / LEVELS[how]) for each in blocks]
    return np.concatenate([*steps, np.zeros(0)]).astype(np.float64)


@given(flats, hows)
def test_an_entry_moves_by_half_a_step_at_most_and_the_residual_is_what_it_moved(
    flat: NDArray[np.float32], how: Encoding
) -> None:
    packed, lost = compressed(flat, None, how)
    assert (packed.dtype, packed.shape) == (np.uint8, (packed_bytes(len(flat), how),))
    decoded = decompressed(packed, len(flat), how)
    assert decoded.dtype == np.float32
    error = np.abs(decoded.astype(np.float64) - flat)
    # Scales and products are rounded to float32; what is beneath its normal numbers has no scale.
    slack = np.abs(flat) * 2.0**-22 + SMALLEST_SCALE * LEVELS[how]
    assert (error <= scales_of(flat, how) / 2 + slack).all()
    assert np.abs(lost - (flat.astype(np.float64) - decoded)).max(initial=0) <= 2.0**-24 * 8


@given(st.integers(0, 200), hows)
def test_zero_stays_zero_beside_anything(size: int, how: Encoding) -> None:
    flat = np.where(np.arange(size) % 3 == 0, 0.0, 5.0).astype(np.float32)
    decoded = decompressed(compressed(flat, None, how)[0], size, how)
    assert (decoded[::3] == 0).all()
    nothing, lost = compressed(np.zeros(size, np.float32), None, how)
    assert not decompressed(nothing, size, how).any()
    assert not lost.any()


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), hows)
def test_with_error_feedback_decoded_sums_are_the_true_sums_but_for_the_last_residual(
    seed: int, rounds: int, how: Encoding
) -> None:
    random = np.random.default_rng(seed)
    deltas = random.normal(0, 0.1, (rounds, 100)).astype(np.float32)
    lost: NDArray[np.float32] | None = None
    decoded = np.zeros(100)
    for delta in deltas:
        packed, lost = compressed(delta, lost, how)
        decoded += decompressed(packed, 100, how)
    assert lost is not None
    true = deltas.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(decoded + lost, true, atol=rounds * 1e-7)
    assert np.abs(lost).max() <= 1.0 / LEVELS[how]


def test_an_update_of_512_entries_takes_this_many_bytes() -> None:
    assert [packed_bytes(512, how) for how in ("none", "int8", "int4")] == [2048, 544, 288]
    assert packed_bytes(0, "int4") == 0
    assert packed_bytes(65, "int4") == 8 + 33


@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_without_a_scale_is_not_packed(how: Encoding, value: float) -> None:
    with pytest.raises(MismatchError) as refused:
        compressed(np.array([1.0, value], np.float32), None, how)
    assert refused.value.code == "not-finite"


@given(st.binary(max_size=80), st.integers(0, 70), hows)
def test_any_bytes_are_one_update_or_refused(content: bytes, size: int, how: Encoding) -> None:
    packed = np.frombuffer(content, np.uint8)
    with suppress(MismatchError):
        decoded = decompressed(packed, size, how)
        assert decoded.shape == (size,)
        assert np.isfinite(decoded).all()


def payload_of(flat: NDArray[np.float32], how: Encoding, device: str = "person-01") -> Payload:
    header = make_header(make_plan(compression=how), device=device, encoding=how)
    return Payload(compressed(flat, None, how)[0], header.config())


def judged(payload: Payload, how: Encoding) -> Admitted | Refused:
    return admit(payload, make_plan(compression=how), LAYOUT, "person-01", Bounds())


FLAT = np.linspace(-1, 1, LAYOUT.size).astype(np.float32)


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_a_packed_update_is_admitted_as_what_it_decodes_to(how: Encoding) -> None:
    verdict = judged(payload_of(FLAT, how), how)
    assert isinstance(verdict, Admitted)
    decoded = decompressed(compressed(FLAT, None, how)[0], LAYOUT.size, how)
    assert verdict.entries.tolist() == decoded.tolist()
    assert verdict.digest == CoreState.from_flat(LAYOUT, decoded).digest
    assert not verdict.entries.flags.writeable


@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -0.0, 1e30, 8.5])
def test_a_hostile_scale_is_refused(how: Encoding, scale: float) -> None:
    sent = payload_of(FLAT, how)
    forged = sent.array.copy()
    forged[:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    verdict = judged(Payload(forged, sent.config), how)
    assert isinstance(verdict, Refused)
    assert verdict.reason is Reason.malformed
    assert "scale" in verdict.detail


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_a_scale_within_its_bound_still_meets_the_bound_of_entries(how: Encoding) -> None:
    sent = payload_of(FLAT, how)
    forged = sent.array.copy()
    forged[:4] = np.frombuffer(np.float32(8).tobytes(), np.uint8)
    verdict = judged(Payload(forged, sent.config), how)
    assert isinstance(verdict, Refused)
    assert verdict.reason is Reason.entry_too_large


@pytest.mark.parametrize(
    ("how", "level"), [("int8", 0x80), ("int4", 0x00), ("int4", 0x80), ("int4", 0x98)]
)
def test_a_level_that_is_never_sent_is_refused(how: Encoding, level: int) -> None:
    sent = payload_of(FLAT, how)
    forged = sent.array.copy()
    forged[-1] = level
    verdict = judged(Payload(forged, sent.config), how)
    assert isinstance(verdict, Refused)
    assert verdict.reason is Reason.malformed
    assert "level" in verdict.detail


def test_bytes_behind_the_last_entry_hold_nothing() -> None:
    packed, _ = compressed(np.ones(3, np.float32), None, "int4")
    packed[-1] = (packed[-1] & 0x0F) | 0x90
    with pytest.raises(MismatchError, match="a level is from -7 to 7"):
        decompressed(packed, 3, "int4")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(LAYOUT.size, np.float32), Reason.wrong_dtype),
        (np.zeros(LAYOUT.size, np.int8), Reason.wrong_dtype),
        (np.zeros(0, np.uint8), Reason.wrong_shape),
        (np.zeros(packed_bytes(LAYOUT.size, "int4") + 1, np.uint8), Reason.wrong_shape),
        (np.zeros((packed_bytes(LAYOUT.size, "int4"), 1), np.uint8), Reason.wrong_shape),
    ],
)
def test_an_array_of_another_type_or_size_is_refused(
    array: NDArray[np.generic], reason: Reason
) -> None:
    verdict = judged(Payload(array, payload_of(FLAT, "int4").config), "int4")
    assert isinstance(verdict, Refused)
    assert verdict.reason is reason


@pytest.mark.parametrize(("sent", "asked"), [("int4", "none"), ("int8", "int4"), ("none", "int4")])
def test_an_update_in_another_encoding_than_the_plan_asks_for_is_refused(
    sent: Encoding, asked: Encoding
) -> None:
    plan = make_plan(compression=asked)
    header = make_header(plan, encoding=sent, device="person-01")
    payload = encode_update(Update(header, CoreState.from_flat(LAYOUT, FLAT)))
    if sent != "none":
        payload = Payload(compressed(FLAT, None, sent)[0], header.config())
    verdict = admit(payload, plan, LAYOUT, "person-01", Bounds())
    assert isinstance(verdict, Refused)
    assert verdict.reason is Reason.wrong_encoding


@given(st.randoms(use_true_random=False), hows)
def test_the_sum_of_packed_updates_has_the_same_bits_in_every_order(
    random: object, how: Encoding
) -> None:
    found = [judged(payload_of(FLAT * np.float32(k / 7), how), how) for k in range(1, 6)]
    pairs = [(each.entries, each.weight) for each in found if isinstance(each, Admitted)]
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = (PartialSum.of_entries(each, LAYOUT.size).mean() for each in (pairs, shuffled))
    assert len(pairs) == 5
    assert one.tolist() == two.tolist()


@given(st.sampled_from(["none", "int8", "int4"]), st.integers(1, 10**6), st.floats(0, 10))
def test_the_quick_config_of_a_header_is_what_pydantic_dumps(
    how: Encoding, examples: int, loss: float
) -> None:
    header = make_header(make_plan(), encoding=how, examples=examples, loss=loss)
    assert header.config() == header.model_dump(mode="json")
    assert list(header.config()) == list(header.model_dump(mode="json"))
    assert ("encoding" in header.config()) == (how != "none")


def test_a_plan_without_compression_says_what_it_said_before_there_was_any() -> None:
    assert "compression" not in make_plan().model_dump(mode="json")
    assert make_plan(compression="none").id == make_plan().id
    assert make_plan(compression="int4").model_dump(mode="json")["compression"] == "int4"
