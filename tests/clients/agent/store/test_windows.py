from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from clients.agent.store import SplitRule, WindowBatch, open_reader
from fleet.errors import InputError, StorageError
from tests.clients.agent.store.windows import NOW_S, SHAPE, SIZE, TRAIN, batch, opened


def test_windows_come_back_bit_for_bit_after_reopening(tmp_path: Path) -> None:
    given = batch(5)
    with opened(tmp_path) as store:
        added = store.windows.add("ada", "walk.csv", given, TRAIN)
        assert (added.new, added.repeated, added.evicted) == (5, 0, 0)
    with opened(tmp_path) as store:
        found = store.windows.load(SHAPE)
        np.testing.assert_array_equal(found.x, given.signals)
        np.testing.assert_array_equal(found.start_s, given.start_s)
        assert found.labels == (None,) * 5
        assert found.people == ("ada",) * 5
        assert store.windows.bytes() == 5 * SIZE
        assert store.notices == ()


def test_halves_are_kept_as_halves(tmp_path: Path) -> None:
    given = batch(3, dtype="float16")
    with opened(tmp_path) as store:
        store.windows.add("ada", "walk.csv", given, TRAIN)
        assert store.windows.bytes() == 3 * SIZE // 2
        np.testing.assert_array_equal(store.windows.load(SHAPE).x, given.signals.astype(np.float32))


def test_a_repeated_batch_adds_nothing_and_moves_no_split(tmp_path: Path) -> None:
    rule = SplitRule(block=4, held_out=2)
    with opened(tmp_path) as store:
        store.windows.add("ada", "walk.csv", batch(3), rule)
        added = store.windows.add("ada", "copy.csv", batch(3), rule)
        assert (added.new, added.repeated) == (0, 3)
        store.windows.add("ada", "walk.csv", batch(1, first=3), rule)
        assert store.windows.counts() == {("train", None): 2, ("held-out", None): 2}
        assert store.windows.add("ben", "walk.csv", batch(3), rule).new == 3


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_windows_that_share_samples_are_never_on_both_sides(reach: int) -> None:
    rule = SplitRule(block=12, held_out=5)
    sides = [rule.side(number, reach) for number in range(60)]
    assert {"train", "held-out"} <= set(sides)
    for number, side in enumerate(sides):
        near = set(sides[max(number - reach, 0) : number])
        assert side == "border" or near <= {side, "border"}


def test_the_side_does_not_depend_on_how_windows_are_batched(tmp_path: Path) -> None:
    rule = SplitRule(block=5, held_out=2)
    with opened(tmp_path / "one") as store:
        store.windows.add("ada", "s", batch(12), rule)
        whole = [store.windows.load(SHAPE, split=side).start_s.tolist() for side in SIDES]
    given = batch(12)
    with opened(tmp_path / "many") as store:
        for at in range(12):
            part = WindowBatch(
                given.start_s[at : at + 1], given.end_s[at : at + 1], given.signals[at : at + 1]
            )
            store.windows.add("ada", "s", part, rule)
        assert [store.windows.load(SHAPE, split=side).start_s.tolist() for side in SIDES] == whole


SIDES = ("train", "held-out", "border")


def test_a_split_needs_both_sides() -> None:
    with pytest.raises(ValidationError, match="held_out is 4, not less than block 4"):
        SplitRule(block=4, held_out=4)


def test_loading_selects_by_side_label_person_pin_and_shape(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(4), TRAIN)
        store.windows.add("ben", "s", batch(2), SplitRule(kind="held-out"))
        store.labels.window(2, "walking", "ada")
        store.windows.pin([3])
        windows = store.windows
        assert windows.load(SHAPE, split="held-out").ids.tolist() == [5, 6]
        assert windows.load(SHAPE, labelled=True).ids.tolist() == [2]
        assert windows.load(SHAPE, labelled=False, person="ada").ids.tolist() == [1, 3, 4]
        assert windows.load(SHAPE, pinned=True).ids.tolist() == [3]
        assert windows.load(SHAPE, newest=2).ids.tolist() == [5, 6]
        assert windows.load((3, 8)).x.shape == (0, 3, 8)
        windows.unpin([3])
        assert len(windows.load(SHAPE, pinned=True).ids) == 0


def test_a_window_whose_bytes_rotted_is_left_out_and_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(2), TRAIN)
        with store.transaction() as connection:
            connection.execute("UPDATE windows SET signal = zeroblob(size) WHERE id = 1")
        found = store.windows.load(SHAPE)
        assert found.ids.tolist() == [2]
        assert found.damaged == 1


@pytest.mark.parametrize(
    "signals",
    [
        np.zeros((2, *SHAPE)),
        np.zeros((2, 8), np.float32),
        np.zeros((3, *SHAPE), np.float32),
        np.full((2, *SHAPE), np.nan, np.float32),
    ],
    ids=["float64", "two axes", "three for two", "not a number"],
)
def test_unsuitable_windows_are_refused_whole(tmp_path: Path, signals: np.ndarray) -> None:
    with opened(tmp_path) as store:
        with pytest.raises(InputError) as caught:
            store.windows.add("ada", "s", WindowBatch(np.zeros(2), np.ones(2), signals), TRAIN)
        assert caught.value.code == "bad-windows"
        assert store.windows.counts() == {}


def test_a_reader_sees_what_is_acknowledged_and_cannot_write(tmp_path: Path) -> None:
    with opened(tmp_path) as store, open_reader(tmp_path, clock=lambda: NOW_S) as reader:
        store.windows.add("ada", "s", batch(2), TRAIN)
        assert len(reader.windows.load(SHAPE).ids) == 2
        with pytest.raises(StorageError) as caught:
            reader.counters.add({"x": 1})
        assert caught.value.code == "read-only"


def test_a_reader_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        open_reader(tmp_path, clock=lambda: NOW_S)
    assert caught.value.code == "store-unopenable"


def test_signals_are_for_their_owner_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "state") as store:
        store.windows.add("ada", "s", batch(2), TRAIN)
        assert (tmp_path / "state").stat().st_mode & 0o077 == 0
        for path in (tmp_path / "state").iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
