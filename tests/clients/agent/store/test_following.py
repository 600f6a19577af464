from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.agent.store.following import (
    LabelCursor,
    count_after,
    labelled_after,
    spread,
    windows_after,
)
from tests.clients.agent.store.windows import SHAPE, TRAIN, batch, opened

MOST = 3
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 5)),
        st.tuples(st.just("label"), st.integers(0, 20), st.integers(1, 6)),
        st.just(("look",)),
    ),
    max_size=25,
)


def test_windows_come_in_the_order_of_arrival_and_others_of_another_base_are_left_out(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(5, first=10), TRAIN)
        store.windows.add("ben", "s", batch(4), TRAIN)
        found, last = windows_after(store.database, SHAPE, 0, 7)
        assert (found.start_s.tolist(), last) == ([10, 11, 12, 13, 14, 0, 1], 7)
        found, last = windows_after(store.database, SHAPE, last, 7)
        assert (found.people, last) == (("ben", "ben"), 9)
        assert windows_after(store.database, SHAPE, last, 7)[1] == last
        assert count_after(store.database, SHAPE, 4) == 5
        assert count_after(store.database, (3, 8), 0) == 0


@pytest.mark.parametrize(
    ("most", "over", "wanted"),
    [
        (3, 9, [20, 23, 26]),
        (4, 100, [8, 14, 20, 26]),
        (20, 100, list(range(7, 27))),
        (40, 100, list(range(27))),
        (2, 1, [26]),
    ],
)
def test_windows_are_spread_over_the_newest_and_come_in_the_order_of_arrival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, over: int, wanted: list[float]
) -> None:
    monkeypatch.setattr("clients.agent.store.following._AT_ONCE", 2)
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(27), TRAIN)
        found, spanned = spread(store.database, SHAPE, most, over)
        assert (found.start_s.tolist(), spanned) == (wanted, min(27, over))
        assert not spread(store.database, (3, 8), most, over)[0].ids.size


@given(actions=ACTIONS)
@settings(max_examples=30)
def test_each_label_is_met_once_whenever_it_and_its_window_come(
    actions: list[tuple[object, ...]],
) -> None:
    with TemporaryDirectory() as folder, opened(Path(folder)) as store:
        cursor, met, arrived, said = LabelCursor(), list[float](), 0, set[int]()
        for action in (*actions, ("look",)):
            if action[0] == "arrive":
                count = int(str(action[1]))
                store.windows.add("ada", "s", batch(count, first=arrived), TRAIN)
                arrived += count
            elif action[0] == "label":
                first, length = int(str(action[1])), int(str(action[2]))
                # Each place in time is labelled once, so each window should be met once.
                places = [one for one in range(first, first + length) if one not in said]
                for place in places:
                    store.labels.range("ada", place, place + 0.95, "walk", "ada")
                said |= set(places)
            else:
                moved = True
                while moved:
                    found, after = labelled_after(store.database, SHAPE, cursor, MOST)
                    assert len(found.ids) <= MOST
                    moved, cursor = after != cursor, after
                    met += found.start_s.tolist()
        assert sorted(met) == sorted(place for place in said if place < arrived)


@pytest.mark.parametrize("most", [1, 2, 100])
def test_one_statement_over_many_windows_is_gone_through_in_parts(
    tmp_path: Path, most: int
) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(7), TRAIN)
        _, cursor = labelled_after(store.database, SHAPE, LabelCursor(), most)
        assert cursor.window == 7
        store.labels.range("ada", 0, 100, "walk", "ada")
        met: list[int] = []
        while True:
            found, after = labelled_after(store.database, SHAPE, cursor, most)
            if after == cursor:
                break
            met, cursor = [*met, *found.ids.tolist()], after
        assert met == list(range(1, 8))


def test_a_correction_brings_a_window_again_and_what_was_taken_back_does_not(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(4), TRAIN)
        store.labels.range("ada", 0, 1, "walk", "ada")
        found, cursor = labelled_after(store.database, SHAPE, LabelCursor(), 10)
        while True:
            more, after = labelled_after(store.database, SHAPE, cursor, 10)
            if after == cursor:
                break
            found, cursor = (more if len(more.ids) else found), after
        assert found.labels == ("walk",)
        store.labels.range("ada", 0, 1, "sit", "ada")
        store.labels.window(2, "sit", "ada")
        store.labels.window(2, None, "ada")
        found, cursor = labelled_after(store.database, SHAPE, cursor, 10)
        assert (found.ids.tolist(), found.labels) == ([1], ("sit",))
        assert labelled_after(store.database, SHAPE, cursor, 10)[1] == cursor
