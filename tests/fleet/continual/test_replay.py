from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load, save

from fleet.continual.replay import Encoding, Evicted, Reason, Replay
from fleet.errors import InputError, StorageError

BYTES_EACH = 2 * 4 + 2 * 4 + 4 + 8 + 4  # int8 [2, 4] samples, two steps, label, id, period

streams = st.lists(
    st.tuples(st.integers(-(1 << 62), 1 << 62), st.integers(0, 4)),
    max_size=60,
    unique_by=lambda window: window[0],
)


def x_of(ids: Sequence[int]) -> NDArray[np.float32]:
    """Windows that follow from their ids."""
    values = np.array([[(each % 997) + k for k in range(8)] for each in ids], np.float32)
    return values.reshape(len(ids), 2, 4)


def add(replay: Replay, windows: Sequence[tuple[int, int]]) -> tuple[Replay, tuple[Evicted, ...]]:
    ids = [each for each, _ in windows]
    return replay.add(x_of(ids), np.array([y for _, y in windows], np.int64), ids, 0)


def same(one: Replay, other: Replay) -> bool:
    pairs = zip(one.arrays().values(), other.arrays().values(), strict=True)
    # The shape of a window is unknown to a buffer that never saw one.
    return all(a.size == b.size == 0 or np.array_equal(a, b) for a, b in pairs)


@given(streams, st.randoms(), st.integers(0, 40), st.lists(st.integers(0, 60), max_size=4))
def test_what_is_held_depends_on_the_windows_seen_and_not_on_order_or_batches(
    windows: list[tuple[int, int]], random: object, room: int, cuts: list[int]
) -> None:
    at_once, _ = add(Replay.empty(room * BYTES_EACH, seed=3), windows)
    shuffled = list(windows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    in_parts = Replay.empty(room * BYTES_EACH, seed=3)
    ends = [*sorted(cuts), len(shuffled)]
    for start, end in zip([0, *ends], ends, strict=False):
        in_parts, _ = add(in_parts, shuffled[start:end])
    again, _ = add(in_parts, shuffled)
    assert same(at_once, in_parts)
    assert same(at_once, again)


@given(streams, st.integers(0, 40), st.integers(0, BYTES_EACH - 1))
def test_the_budget_is_used_up_and_shared_by_water_filling(
    windows: list[tuple[int, int]], room: int, rest: int
) -> None:
    replay, evicted = add(Replay.empty(room * BYTES_EACH + rest), windows)
    assert replay.bytes_held <= replay.budget_bytes
    assert len(replay) == min(room, len(windows))
    assert len(replay) + len(evicted) == len(windows)
    losers = {each.label for each in evicted}
    held = np.bincount(replay.y, minlength=5)
    for label in losers:
        assert held[label] >= held.max() - 1


@given(streams, streams, st.integers(0, 20))
def test_every_window_is_held_or_accounted_for(
    first: list[tuple[int, int]], then: list[tuple[int, int]], room: int
) -> None:
    one, _ = add(Replay.empty(room * BYTES_EACH), first)
    two, evicted = add(one, then)
    offered = dict([*zip(one.ids.tolist(), one.y.tolist(), strict=True), *then])
    gone = {each.id for each in evicted if each.reason is not Reason.relabelled}
    assert set(two.ids.tolist()) | gone == set(offered)
    assert set(two.ids.tolist()) & gone == set()


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_int8_comes_back_within_half_a_step_of_its_window_and_channel(
    x: NDArray[np.float32],
) -> None:
    count = len(x)
    replay, _ = Replay.empty(1 << 20).add(x, np.zeros(count, np.int64), range(count), 0)
    back, _ = replay.windows()
    tiny = np.finfo(np.float32).tiny
    step = np.maximum(np.abs(x).max(axis=2).astype(np.float64) / 127, tiny)
    error = np.abs(back.astype(np.float64) - x)
    assert (error <= 0.5 * step[:, :, None] * (1 + 1e-4)).all()


@pytest.mark.parametrize(("encoding", "error"), [("float32", 0.0), ("float16", 1e-3)])
def test_floats_come_back_as_precise_as_their_type(encoding: Encoding, error: float) -> None:
    x = np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32)
    replay, _ = Replay.empty(10_000, encoding).add(x, np.arange(5), range(5), 7)
    back, y = replay.windows()
    assert np.abs(back - x).max() <= error * np.abs(x).max()
    assert y.dtype == np.int64
    assert y.tolist() == [0, 1, 2, 3, 4]
    assert replay.periods.tolist() == [7] * 5


def test_a_class_that_arrives_takes_its_share_from_the_others_and_it_is_told_why() -> None:
    room = Replay.empty(4 * BYTES_EACH)
    full, evicted = add(room, [(i, 0) for i in range(6)])
    assert {each.reason for each in evicted} == {Reason.class_full}
    shared, evicted = add(full, [(10, 1), (11, 1)])
    assert sorted(shared.y.tolist()) == [0, 0, 1, 1]
    assert [(each.label, each.reason) for each in evicted] == [(0, Reason.over_budget)] * 2


def test_a_budget_below_one_window_holds_nothing_and_says_so() -> None:
    replay, evicted = add(Replay.empty(BYTES_EACH - 1), [(5, 1)])
    assert len(replay) == 0
    assert evicted == (Evicted(5, 1, Reason.over_budget),)


def test_a_window_that_comes_again_changes_nothing_but_a_new_label_counts() -> None:
    replay, _ = add(Replay.empty(1000), [(1, 0), (2, 0)])
    same_again, evicted = add(replay, [(2, 0)])
    assert same(same_again, replay)
    assert evicted == ()
    moved, evicted = add(replay, [(2, 3)])
    assert moved.y.tolist() == [0, 3]
    assert evicted == (Evicted(2, 0, Reason.relabelled),)


def test_two_devices_keep_different_windows_of_the_same_stream() -> None:
    stream = [(i, 0) for i in range(200)]
    held = [
        set(add(Replay.empty(50 * BYTES_EACH, device=name), stream)[0].ids.tolist())
        for name in ("a", "b")
    ]
    assert 0 < len(held[0] & held[1]) < 30


def test_every_window_of_a_stream_is_as_likely_to_be_held() -> None:
    counts = np.zeros(40)
    for seed in range(300):
        held, _ = add(Replay.empty(10 * BYTES_EACH, seed=seed), [(i, 0) for i in range(40)])
        counts[held.ids] += 1
    # 75 expected, standard deviation 7.5.
    assert np.abs(counts - 75).max() < 4.5 * 7.5


@pytest.mark.parametrize("encoding", ["int8", "float16", "float32"])
def test_a_buffer_survives_safetensors_and_goes_on_as_it_would_have(encoding: Encoding) -> None:
    replay, _ = add(Replay.empty(500, encoding, seed=9, device="d"), [(i, i % 3) for i in range(9)])
    read = Replay.of_arrays(load(save(replay.arrays())))
    more = [(i, i % 2) for i in range(20, 40)]
    assert same(read, replay)
    assert same(add(read, more)[0], add(replay, more)[0])


def test_an_empty_buffer_survives_too() -> None:
    assert len(Replay.of_arrays(load(save(Replay.empty(500).arrays())))) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", np.array([2, 1], np.int64)),
        ("ids", np.array([1, 2, 3], np.int64)),
        ("ids", np.array([1, 2], np.int32)),
        ("y", np.array([0, -1], np.int32)),
        ("steps", np.full((2, 2), np.nan, np.float32)),
        ("steps", np.ones((2, 1), np.float32)),
        ("settings", np.array([10, 0, 1], np.int64)),
        ("settings", np.array([1000, 5, 1], np.int64)),
        ("settings", np.array([1000], np.int64)),
        ("stored", np.zeros((2, 8), np.int8)),
    ],
)
def test_arrays_that_no_buffer_has_are_refused(name: str, value: NDArray[np.generic]) -> None:
    replay, _ = add(Replay.empty(1000), [(1, 0), (2, 0)])
    with pytest.raises(StorageError, match="no replay buffer") as refused:
        Replay.of_arrays({**replay.arrays(), name: value})
    assert refused.value.code == "bad-replay"


def test_missing_arrays_are_refused() -> None:
    with pytest.raises(StorageError, match="settings"):
        Replay.of_arrays({})


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (np.zeros((1, 2), np.float32), np.zeros(1, np.int64), "float32"),
        (np.zeros((1, 2, 4)), np.zeros(1, np.int64), "float64"),
        (np.full((1, 2, 4), np.nan, np.float32), np.zeros(1, np.int64), "NaN"),
        (np.zeros((1, 2, 5), np.float32), np.zeros(1, np.int64), "not \\(2, 5\\)"),
        (np.zeros((1, 2, 4), np.float32), np.zeros(2, np.int64), "one integer label"),
        (np.zeros((1, 2, 4), np.float32), np.full(1, -1), "0 to 2"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    x: NDArray[np.float32], y: NDArray[np.int64], match: str
) -> None:
    replay, _ = add(Replay.empty(1000), [(1, 0)])
    with pytest.raises(InputError, match=match) as refused:
        replay.add(x, y, [7], 0)
    assert refused.value.code == "replay-windows"


def test_a_bad_budget_or_encoding_is_refused() -> None:
    with pytest.raises(InputError, match="0 to"):
        Replay.empty(-1)
    with pytest.raises(InputError, match="int4"):
        Replay.empty(1, "int4")  # type: ignore[arg-type]


def test_a_value_that_half_precision_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="65504"):
        Replay.empty(1000, "float16").add(
            np.full((1, 1, 8), 1e5, np.float32), np.zeros(1, np.int64), [1], 0
        )
