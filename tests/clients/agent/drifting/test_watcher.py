"""The watcher's laws on made-up streams; kills are in test_cut_off.py."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from clients.agent.drifting import watcher as module
from clients.agent.drifting.kept import (
    MOST_ALARMS,
    Alarm,
    alarms_of,
    memory_of,
    note_alarms,
    put_memory,
    reference_of,
    window_cursor_of,
)
from clients.agent.drifting.reference import LARGEST_FEATURES, narrowed, pack, unpack
from clients.agent.learner import workbench
from clients.agent.store import SplitRule, Store, WindowBatch
from clients.agent.watching import features_of
from fleet.adapt.base import Base
from fleet.continual.signals import Reference
from fleet.errors import StorageError
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.drifting.streams import add, alarmed, signals_of, watch_all, watcher_of
from tests.clients.agent.serving.factories import CHANNELS, LABELS, MEAN, STD, WINDOW, make_base

STATE_BYTES = 1 << 19


def kept_bytes(store: Store) -> int:
    with store.database.read() as connection:
        rows = connection.execute("SELECT key, length(value) FROM state").fetchall()
    return sum(size for key, size in rows if "drift" in key)


def test_a_stable_stream_raises_no_alarm_and_a_turned_sensor_one(store: Store, base: Base) -> None:
    turned = Turned()
    watcher = watcher_of(store, base, turned, threshold=0.0)  # the library's own
    add(store, 1200)
    watch_all(watcher)
    assert alarmed(store) == []
    add(store, 300, 1200, turned=True)
    turned.seconds = 60.0
    watch_all(watcher)
    [(signal, window)] = alarmed(store)
    assert signal == "label-free"
    assert 1200 <= window < 1400
    assert alarms_of(store)[0].at_s == turned.world().now()
    [told] = turned.said("drift.alarm")
    assert told == {"signal": "label-free", "window_s": window * 10}
    assert store.counters.all() == {"drift.alarms.label-free": 1}


def test_a_device_that_does_not_watch_computes_and_keeps_nothing(store: Store, base: Base) -> None:
    add(store, 200)
    assert not watcher_of(store, base, watch=False).step()
    assert kept_bytes(store) == 0


def test_where_alarms_fall_depends_neither_on_batches_nor_on_restarts(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, 400)
    add(store, 100, 400, turned=True)
    found = []
    for most in (256, 7):
        monkeypatch.setattr(module, "BATCH_WINDOWS", most)
        with store.transaction() as connection:
            connection.execute("DELETE FROM state")
        while watcher_of(store, base).step():
            pass  # each step by a watcher that knows only what is kept
        found.append((alarmed(store), window_cursor_of(store)))
    assert found[0] == found[1]
    assert len(found[0][0]) == 1


def test_every_window_after_the_reference_is_seen_once(store: Store, base: Base) -> None:
    watcher = watcher_of(store, base)
    for first in range(0, 600, 60):
        add(store, 60, first)
        add(store, 30, first)  # taken in again: the store knows them
        watch_all(watcher)
    memory = memory_of(store, "label-free")
    assert memory is not None
    # Learned as soon as there were enough: from the first 96 windows.
    assert (memory.seen, window_cursor_of(store)) == (600 - 96, store.labels.mark()[0])


def test_a_window_that_is_damaged_on_the_disk_is_passed_over(store: Store, base: Base) -> None:
    add(store, 200)
    with store.transaction() as connection:
        connection.execute("UPDATE windows SET crc = 1 WHERE id > 190 OR id = 120")
    watch_all(watcher_of(store, base))
    memory = memory_of(store, "label-free")
    assert memory is not None
    assert (memory.seen, window_cursor_of(store)) == (200 - 96 - 11, 200)


@pytest.mark.parametrize("place", [20, 150])
def test_a_window_of_numbers_too_large_to_compute_with_is_passed_over(
    store: Store, base: Base, place: int
) -> None:
    """Also among the first 96, which the reference is made of."""
    turned = Turned()
    watcher = watcher_of(store, base, turned)
    add(store, place)
    huge = np.full((1, CHANNELS, WINDOW), 3e38, np.float32)
    batch = WindowBatch(np.array([1e6]), np.array([1e6 + 1]), huge)
    assert store.windows.add("ada", "stream", batch, SplitRule(kind="train")).new == 1
    add(store, 400 - place, place)
    add(store, 100, 400, turned=True)
    watch_all(watcher)
    memory = memory_of(store, "label-free")
    assert memory is not None
    seen = 501 - 96 - (1 if place > 96 else 0)
    assert (memory.seen, window_cursor_of(store)) == (seen, 501)
    assert turned.said("drift.refused") == []
    [(_, window)] = alarmed(store)  # at the window itself, not one beside it
    assert 400 <= window < 500


@pytest.mark.parametrize("test", ["cusum", "adwin"])
def test_what_is_kept_does_not_grow_with_the_windows_seen(
    store: Store, base: Base, test: str
) -> None:
    if test == "adwin":
        pytest.importorskip("river")
    watcher = watcher_of(store, base, test=test, threshold=0.0)
    sizes = []
    for first in (0, 300, 600):
        add(store, 300, first)
        watch_all(watcher)
        sizes.append(kept_bytes(store))
    assert max(sizes) < STATE_BYTES
    if test == "cusum":
        assert sizes[2] < sizes[0] * 1.02


def test_the_newest_alarms_are_kept_and_all_are_counted(store: Store) -> None:
    with store.transaction():
        for number in range(MOST_ALARMS + 10):
            note_alarms(store, [Alarm("loss", float(number), 0.0)])
    assert [alarm.at_s for alarm in alarms_of(store)] == list(range(10, MOST_ALARMS + 10))
    assert store.counters.all() == {"drift.alarms.loss": MOST_ALARMS + 10}


def test_what_is_kept_is_plain_json_with_its_version(store: Store, base: Base) -> None:
    add(store, 300)
    watch_all(watcher_of(store, base))
    with store.database.read() as connection:
        rows = dict(connection.execute("SELECT key, value FROM state").fetchall())
    assert set(rows) == {
        "drift.cursor.label-free",
        "drift.participation",
        "learned.drift.detector.label-free",
        "learned.drift.reference",
    }
    assert {json.loads(value)["version"] for value in rows.values()} == {1}


def test_a_forgotten_person_leaves_nothing_in_what_is_kept(store: Store, base: Base) -> None:
    watcher = watcher_of(store, base)
    add(store, 400)
    add(store, 200, 400, turned=True)
    add(store, 40, person="ben")
    watch_all(watcher)
    assert alarmed(store)
    assert store.forget("ben").deleted["learned"] == 3  # detector, reference, alarms
    with store.database.read() as connection:
        keys = {row[0] for row in connection.execute("SELECT key FROM state")}
    assert keys == {"drift.cursor.label-free", "drift.participation", "forgets"}
    # Ada's windows were watched; they are not again, and only what comes now is learned from.
    watch_all(watcher)
    assert (window_cursor_of(store), reference_of(store)) == (640, None)
    add(store, 150, 600)
    watch_all(watcher)
    memory = memory_of(store, "label-free")
    assert memory is not None
    assert memory.seen == 150 - 96


def test_who_is_forgotten_while_the_agent_looks_is_not_in_what_it_keeps(
    store: Store, base: Base
) -> None:
    watcher = watcher_of(store, base)
    add(store, 200)
    add(store, 100, person="ben")
    forgotten = False

    def forget(*_: object) -> None:
        nonlocal forgotten
        if not forgotten and reference_of(store) is not None:
            forgotten = True
            store.forget("ben")

    hook = workbench(base).network.register_forward_pre_hook(forget)
    try:
        assert watcher.step()  # the reference
        watcher.step()
    finally:
        hook.remove()
    assert forgotten
    assert memory_of(store, "label-free") is None
    assert reference_of(store) is None


def test_another_base_other_settings_and_damage_make_a_detector_begin_anew(
    store: Store, base: Base
) -> None:
    turned = Turned()
    add(store, 200)
    watch_all(watcher_of(store, base, turned))
    before = memory_of(store, "label-free")
    assert before is not None
    add(store, 50, 200)
    watch_all(watcher_of(store, base, turned, threshold=20.0))
    after = memory_of(store, "label-free")
    assert after is not None
    assert (after.seen, after.state["parameter"]) == (50, 20.0)
    put_memory(store, "label-free", module.Memory(base.digest, 9, {"kind": "label-free"}))
    add(store, 50, 250)
    watch_all(watcher_of(store, base, turned))
    again = memory_of(store, "label-free")
    assert again is not None
    assert again.seen == 50
    reasons = [values["reason"] for values in turned.said("drift.restarted")]
    assert reasons == ["other settings", "bad-detector"]
    add(store, 120, 300)
    other = make_base(seed=5)
    watch_all(watcher_of(store, other, turned))
    last = memory_of(store, "label-free")
    assert last is not None
    assert (last.base, last.seen) == (other.digest, 120 - 96)


def test_a_reference_is_packed_and_unpacked_without_loss(base: Base) -> None:
    features, logits = features_of(workbench(base).network, signals_of(40))
    reference = Reference.of(features, logits.argmax(axis=1).astype(np.int64), len(LABELS))
    packed = json.loads(json.dumps(pack(reference, base.digest)))
    again = unpack(packed, base.digest)
    assert again is not None
    np.testing.assert_array_equal(again.means, reference.means)
    np.testing.assert_array_equal(again.whitening, reference.whitening)
    assert unpack(packed, "0" * 64) is None
    for broken in ({}, {"means": 3}, {**packed, "whitening": packed["means"]}):
        with pytest.raises(StorageError, match="no reference"):
            unpack({**broken, "base": base.digest}, base.digest)


def test_wide_features_are_projected_and_keep_their_distances() -> None:
    x = np.random.default_rng(0).normal(size=(30, 1280)).astype(np.float32)
    small = narrowed(x)
    assert small.shape == (30, LARGEST_FEATURES)
    whole, kept = (np.linalg.norm(each[:15] - each[15:], axis=1) for each in (x, small))
    np.testing.assert_allclose(kept, whole, rtol=0.2)
    assert narrowed(x[:, :128]).shape == (30, 128)


def predicted(base: Base, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[str]:
    normalised = (x - np.array(MEAN, np.float32)[:, None]) / np.array(STD, np.float32)[:, None]
    logits = features_of(workbench(base).network, normalised.astype(np.float32))[1]
    return [LABELS[number] for number in logits.argmax(axis=1)]


def test_errors_on_labels_that_come_late_raise_an_alarm_once_the_base_is_wrong(
    store: Store, base: Base
) -> None:
    pytest.importorskip("river")
    watcher = watcher_of(store, base, signals=("loss",))
    add(store, 600)
    assert watch_all(watcher) == 1  # the windows passed, none had a label
    right = predicted(base, signals_of(600))
    for first in range(0, 600, 100):
        with store.transaction():
            for number in range(first, first + 100):
                name = right[number]
                wrong = LABELS[(LABELS.index(name) + 1) % len(LABELS)]
                said = name if number < 300 else wrong
                store.labels.range("ada", number * 10, number * 10 + 1, said, "ada")
        watch_all(watcher)
    store.labels.range("ada", 0, 1, "juggling", "a")  # the base does not know it
    watch_all(watcher)
    [(signal, window)] = alarmed(store)
    assert signal == "loss"
    assert 300 <= window < 400
    huge = np.full((1, CHANNELS, WINDOW), 3e38, np.float32)
    batch = WindowBatch(np.array([1e6]), np.array([1e6 + 1]), huge)
    store.windows.add("ada", "stream", batch, SplitRule(kind="train"))
    store.labels.range("ada", 1e6, 1e6 + 1, LABELS[0], "a")  # nobody knows what the base says
    watch_all(watcher)
    memory = memory_of(store, "loss")
    assert memory is not None
    assert memory.seen == 600


def test_without_river_the_loss_is_told_once_and_the_rest_goes_on(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    turned = Turned()
    watcher = watcher_of(store, base, turned, signals=("loss", "label-free"))
    add(store, 200)
    watch_all(watcher)
    watch_all(watcher)
    [told] = turned.said("drift.refused")
    assert (told["signal"], told["reason"]) == ("loss", "extra-missing")
    assert window_cursor_of(store) == 200
