from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clients.agent.store import Caps
from tests.clients.agent.store.windows import SHAPE, SIZE, TRAIN, batch, opened


def caps(windows: int, unlabelled: int, replay: int = 1) -> Caps:
    """Caps in windows."""
    return Caps(
        windows_bytes=windows * SIZE,
        unlabelled_bytes=unlabelled * SIZE,
        replay_bytes=replay * SIZE,
    )


def test_the_oldest_unlabelled_windows_go_first(tmp_path: Path) -> None:
    with opened(tmp_path, caps(6, 3)) as store:
        store.windows.add("ada", "s", batch(3), TRAIN)
        store.labels.range("ada", 0.0, 3.0, "walking", "ada")
        assert store.windows.add("ada", "s", batch(5, first=3), TRAIN).evicted == 2
        assert store.windows.load(SHAPE).ids.tolist() == [1, 2, 3, 6, 7, 8]


def test_a_rare_class_keeps_its_share_however_old_it_is(tmp_path: Path) -> None:
    with opened(tmp_path, caps(6, 2)) as store:
        store.labels.range("ada", 0.0, 2.0, "lying", "ada")
        store.labels.range("ada", 2.0, 99.0, "walking", "ada")
        for first in range(0, 40, 4):
            store.windows.add("ada", "s", batch(4, first=first), TRAIN)
        found = store.windows.load(SHAPE)
        assert Counter(found.labels) == {"lying": 2, "walking": 4}
        assert found.start_s[2:].tolist() == [36, 37, 38, 39]


def test_classes_that_all_want_room_get_equal_shares(tmp_path: Path) -> None:
    with opened(tmp_path, caps(9, 2)) as store:
        for number, name in enumerate(("lying", "sitting", "walking")):
            store.labels.range("ada", 10.0 * number, 10.0 * number + 10, name, "ada")
        for first in (0, 10, 20):
            store.windows.add("ada", "s", batch(9, first=first), TRAIN)
        found = store.windows.load(SHAPE)
        assert Counter(found.labels) == {"lying": 3, "sitting": 3, "walking": 3}


def test_pinned_windows_stay_and_pins_have_a_cap(tmp_path: Path) -> None:
    with opened(tmp_path, caps(4, 4, replay=2)) as store:
        store.windows.add("ada", "s", batch(4), TRAIN)
        assert store.windows.pin([1, 2]) == 0
        store.windows.add("ada", "s", batch(4, first=4), TRAIN)
        assert store.windows.load(SHAPE).ids.tolist() == [1, 2, 7, 8]
        assert store.windows.pin([7]) == 1
        assert store.windows.load(SHAPE, pinned=True).ids.tolist() == [2, 7]


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.sampled_from([None, "a", "b", "c"])), max_size=8),
    st.integers(2, 9),
    st.integers(1, 9),
)
def test_caps_hold_after_every_call(
    steps: list[tuple[int, str | None]], windows: int, unlabelled: int
) -> None:
    unlabelled = min(windows, unlabelled)
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder), caps(windows, unlabelled)) as store,
    ):
        first = 0
        for count, label in steps:
            if label:
                store.labels.range("ada", first, first + count, label, "ada")
            store.windows.add("ada", "s", batch(count, first=first), TRAIN)
            first += count
            found = store.windows.load(SHAPE)
            assert len(found.ids) <= windows
            assert sum(one is None for one in found.labels) <= unlabelled
            assert len(found.ids) > 0


def test_evicted_space_goes_back_to_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path, caps(4000, 4000)) as store:
        store.windows.add("ada", "s", batch(4000), TRAIN)
        store.tidy()
        full = (tmp_path / "store.sqlite").stat().st_size
        with store.transaction() as connection:
            connection.execute("DELETE FROM windows")
        assert store.tidy()
        assert (tmp_path / "store.sqlite").stat().st_size < full / 4


def test_parts_may_not_exceed_the_whole() -> None:
    with pytest.raises(ValidationError, match=r"unlabelled_bytes.*replay_bytes"):
        Caps(windows_bytes=10)
