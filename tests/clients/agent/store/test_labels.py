from __future__ import annotations

from pathlib import Path

import pytest

from clients.agent.store import Caps
from clients.agent.store.records import Statement
from fleet.errors import InputError
from tests.clients.agent.store.windows import NOW_S, SHAPE, TRAIN, batch, opened


def test_a_range_labels_the_windows_that_lie_in_it(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(5), TRAIN)
        store.windows.add("ben", "s", batch(5), TRAIN)
        assert store.labels.range("ada", 1.0, 3.9, "walking", "ada") == 3
        labels = store.windows.load(SHAPE, person="ada").labels
        assert labels == (None, "walking", "walking", "walking", None)
        assert store.windows.load(SHAPE, person="ben", labelled=True).labels == ()


def test_a_range_may_come_before_its_windows(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.labels.range("ada", 0.0, 3.0, "sitting", "file")
        store.labels.range("ada", 1.0, 2.0, "standing", "ada")
        store.windows.add("ada", "s", batch(4), TRAIN)
        assert store.windows.load(SHAPE).labels == ("sitting", "standing", "sitting", None)


def test_the_last_word_holds_and_every_word_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(1), TRAIN)
        store.labels.range("ada", 0.0, 5.0, "walking", "file")
        store.labels.window(1, "sitting", "ada")
        store.labels.window(1, None, "ben")
        assert store.windows.load(SHAPE).labels == (None,)
        assert store.labels.history(1) == (
            Statement("walking", "file", NOW_S, from_s=0.0, to_s=5.0),
            Statement("sitting", "ada", NOW_S, window=1),
            Statement(None, "ben", NOW_S, window=1),
        )


def test_a_named_statement_counts_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(1), TRAIN)
        assert store.labels.range("ada", 0.0, 1.0, "walking", "file", key="row 1") == 1
        store.labels.window(1, "sitting", "ada")
        assert store.labels.range("ada", 0.0, 1.0, "walking", "file", key="row 1") == 0
        assert store.windows.load(SHAPE).labels == ("sitting",)


def test_labels_need_a_window_a_range_and_a_text(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.windows.add("ada", "s", batch(1), TRAIN)
        for code, call in (
            ("no-such-window", lambda: store.labels.window(7, "walking", "ada")),
            ("bad-range", lambda: store.labels.range("ada", 2.0, 1.0, "walking", "ada")),
            ("bad-range", lambda: store.labels.range("ada", 0.0, float("inf"), "x", "ada")),
            ("bad-label", lambda: store.labels.window(1, "  ", "ada")),
            ("bad-label", lambda: store.labels.window(1, "x" * 201, "ada")),
            ("bad-label", lambda: store.labels.window(1, "walking", "")),
        ):
            with pytest.raises(InputError) as caught:
                call()
            assert caught.value.code == code
        assert store.labels.history(1) == ()


def test_statements_leave_in_the_order_they_came(tmp_path: Path) -> None:
    with opened(tmp_path, Caps(labels_bytes=250)) as store:
        store.windows.add("ada", "s", batch(1), TRAIN)
        for name in ("one", "two", "three", "four"):
            store.labels.window(1, name, "ada")
        assert [one.label for one in store.labels.history(1)] == ["two", "three", "four"]
        assert store.windows.load(SHAPE).labels == ("four",)
