"""Laws of a device's own statistics: what they are taken of, when, and whose they are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.agent.calibrating import statistics as module
from clients.agent.calibrating.kept import JUDGED, KEPT, TAKEN, drop_kept, kept_of, put_kept, there
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.calibrating.statistics import LARGEST_VALUE, Statistics
from clients.agent.config import parse_config, render_config
from clients.agent.learner import Workbench, workbench
from clients.agent.serving.probe import normalisation_of
from clients.agent.store import SplitRule, Store, WindowBatch, open_store
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.adapt.train import predict
from fleet.continual.calibration import Calibration, calibration_of, trust_of
from fleet.errors import InputError, ModelError, StorageError
from tests.clients.agent.answering.devices import NOON, Turned, device_config
from tests.clients.agent.calibrating.changed import OWN, add, classes_of, windows_of

DAMAGED = "statistics-damaged"


@pytest.fixture
def store(installed: Path, tmp_path: Path) -> Iterator[Store]:
    state = shutil.copytree(installed, tmp_path / "state")
    with open_store(state, clock=NOON.timestamp) as opened:
        yield opened


def made(
    store: Store, base: Base, turned: Turned | None = None, own: OwnStatistics = OWN
) -> Statistics:
    config = device_config().model_copy(update={"statistics": own})
    return Statistics(store, workbench(base), lambda: config, (turned or Turned()).world())


def test_they_are_those_of_the_last_windows_mixed_with_the_bases(
    store: Store, base: Base, turned: Turned
) -> None:
    add(store, 40, seed=1)
    add(store, 100, seed=2, side="held-out")
    statistics = made(store, base, turned)
    statistics.refresh()
    kept = kept_of(store)
    assert kept is not None
    assert (kept.windows, kept.people, kept.made_s) == (128, frozenset({"ada"}), NOON.timestamp())
    newest = np.concatenate([windows_of(40, seed=1)[12:], windows_of(100, seed=2)])
    wanted = calibration_of(
        base, normalisation_of(base.record).apply(newest), trust=128 / 192, batch=32
    )
    assert trust_of(128) == 128 / 192
    assert Calibration.of_arrays(kept.arrays).digest == wanted.digest
    [told] = turned.said("statistics.taken")
    assert told["windows"] == 128


def test_a_sensor_with_another_gain_and_offset_is_understood_better_without_a_label(
    store: Store, base: Base
) -> None:
    add(store, 128, seed=1)
    statistics = made(store, base)
    statistics.refresh()
    x = torch.from_numpy(normalisation_of(base.record).apply(windows_of(200, seed=5)))
    zero = CoreState.zero(workbench(base).layout("core"))
    fleet, own = (
        float(np.mean(predict(bench.served(zero), x) == classes_of(200)))
        for bench in (workbench(base), statistics.bench())
    )
    assert fleet < 0.9
    assert own > fleet + 0.08


def test_off_or_with_too_few_windows_the_shared_workbench_is_what_computes(
    store: Store, base: Base, turned: Turned
) -> None:
    add(store, 15)
    statistics = made(store, base, turned)
    for _ in range(2):
        statistics.refresh()
    assert not there(store)
    assert statistics.bench() is workbench(base)
    [told] = turned.said("statistics.refused")
    assert told["reason"] == "too-few-windows"
    off = made(store, base, own=OwnStatistics())
    add(store, 100, seed=1)
    off.refresh()
    off.look()
    assert not there(store)
    assert off.take().named("windows") == "windows"


def test_a_bench_is_made_once_and_anew_for_others(store: Store, base: Base) -> None:
    add(store, 64, seed=1)
    statistics = made(store, base)
    statistics.refresh()
    first = statistics.bench()
    assert first is not workbench(base)
    assert statistics.bench() is first
    add(store, 64, seed=2)
    statistics.refresh()
    assert isinstance(statistics.bench(), Workbench)
    assert statistics.bench() is not first


def test_nothing_is_computed_while_no_window_has_come(
    store: Store, base: Base, turned: Turned
) -> None:
    add(store, 64, seed=1)
    statistics = made(store, base, turned)
    for _ in range(3):
        statistics.refresh()
        statistics.look()
    assert len(turned.said("statistics.taken")) == 1


def test_they_are_spread_over_many_times_as_many_windows(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPREAD", 3)
    for seed in range(8):
        add(store, 64, seed=seed)
    made(store, base).refresh()
    kept = kept_of(store)
    assert kept is not None
    assert kept.windows == 128
    # Every third of the newest 384, counted from the newest.
    newest = np.concatenate([windows_of(64, seed=seed) for seed in range(2, 8)])
    wanted = calibration_of(
        base,
        normalisation_of(base.record).apply(newest[2::3]),
        trust=trust_of(128),
        batch=32,
    )
    assert Calibration.of_arrays(kept.arrays).digest == wanted.digest


def test_in_idle_time_they_are_taken_anew_once_a_quarter_has_come(
    store: Store, base: Base, turned: Turned
) -> None:
    statistics = made(store, base, turned)
    counts = []
    for seed, count in enumerate((15, 1, 31, 1, 16, 16)):
        add(store, count, seed=seed)
        statistics.look()
        counts.append(len(turned.said("statistics.taken")))
    assert counts == [0, 1, 2, 2, 3, 4]


def test_other_settings_are_followed_in_idle_time(store: Store, base: Base, turned: Turned) -> None:
    add(store, 64, seed=1)
    made(store, base, turned).look()
    made(store, base, turned, OWN.model_copy(update={"windows": 32})).look()
    assert [told["windows"] for told in turned.said("statistics.taken")] == [64, 32]


@pytest.mark.parametrize("value", [1e30, LARGEST_VALUE * 100])
def test_windows_of_a_sensor_that_does_not_work_are_left_out(
    store: Store, base: Base, value: float
) -> None:
    add(store, 40, seed=1)
    x = np.full_like(windows_of(8), value)
    batch = WindowBatch(np.arange(8.0), np.arange(8.0) + 0.5, x)
    store.windows.add("ben", "broken", batch, SplitRule(kind="train"))
    made(store, base).refresh()
    kept = kept_of(store)
    assert kept is not None
    assert (kept.windows, kept.people) == (40, frozenset({"ada"}))
    x = normalisation_of(base.record).apply(windows_of(40, seed=1))
    wanted = calibration_of(base, x, trust=trust_of(40), batch=32)
    assert Calibration.of_arrays(kept.arrays).digest == wanted.digest


def test_a_damaged_window_is_left_out(store: Store, base: Base) -> None:
    add(store, 40, seed=1)
    with store.transaction() as connection:
        connection.execute("UPDATE windows SET crc = crc + 1 WHERE id = 3")
    made(store, base).refresh()
    kept = kept_of(store)
    assert kept is not None
    assert kept.windows == 39


def test_a_network_without_batch_norms_is_told_once_and_nothing_is_kept(
    store: Store, base: Base, turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ModelError("nothing-to-train", "SmallCNN has no batch norm", "")

    monkeypatch.setattr(module, "calibration_of", refused)
    statistics = made(store, base, turned)
    for seed in range(3):
        add(store, 40, seed=seed)
        statistics.refresh()
        statistics.look()
    assert [told["reason"] for told in turned.said("statistics.refused")] == ["nothing-to-train"]
    assert not there(store)
    assert statistics.bench() is workbench(base)


@pytest.mark.parametrize("way", ["damaged", "cut", "other-base"])
def test_what_is_damaged_or_of_another_base_is_the_fleets_and_told_once(
    store: Store, base: Base, turned: Turned, way: str
) -> None:
    add(store, 40, seed=1)
    made(store, base).take()
    statistics = made(store, base, turned)
    kept = kept_of(store)
    assert kept is not None
    for key in (KEPT, TAKEN):
        put_kept(store, replace(kept, base="0" * 64) if way == "other-base" else kept, key)
        value = store.state.get(key)
        if way == "cut":
            with store.transaction() as connection:
                change = "UPDATE state SET value = substr(value, 1, 100) WHERE key = ?"
                assert connection.execute(change, (key,)).rowcount == 1
        if way == "damaged":
            value["maps"] = {name: text[:-4] for name, text in value["maps"].items()}
            store.state.put(key, value)
    for _ in range(2):
        assert statistics.bench() is statistics.shared.bench
        assert statistics.taken().kept is None
    [told] = turned.said("statistics.refused")
    assert told["reason"] == ("statistics-other-base" if way == "other-base" else DAMAGED)
    statistics.look()  # and they are taken anew
    assert statistics.bench() is not statistics.shared.bench
    assert drop_kept(store)


@pytest.mark.parametrize("value", [100.0, 1e4, 9e5])
def test_a_single_number_far_beyond_all_others_does_not_become_the_statistics(
    store: Store, base: Base, value: float
) -> None:
    add(store, 63, seed=1)
    statistics = made(store, base)
    statistics.refresh()
    wanted = kept_of(store)
    x = windows_of(1, seed=2)
    record = base.record
    x[0, 1, 5] = value * record.std[1] + record.mean[1]
    store.windows.add("ben", "s", WindowBatch(np.zeros(1), np.ones(1), x), SplitRule(kind="train"))
    statistics.refresh()
    found = kept_of(store)
    assert found is not None
    assert wanted is not None
    assert (found.windows, found.people, found.last) == (63, frozenset({"ada"}), wanted.last + 1)
    assert found.digest == wanted.digest


def test_movement_that_all_windows_have_is_no_fault_however_large(store: Store, base: Base) -> None:
    x = 200 * windows_of(40)
    batch = WindowBatch(np.arange(40.0), np.arange(40.0) + 0.5, x)
    store.windows.add("ada", "other gain", batch, SplitRule(kind="train"))
    made(store, base).refresh()
    kept = kept_of(store)
    assert kept is not None
    assert kept.windows == 40


def test_more_windows_wanted_than_they_are_of_leave_the_fleets(store: Store, base: Base) -> None:
    add(store, 16, seed=1)
    made(store, base).take()
    more = made(store, base, own=OWN.model_copy(update={"min_windows": 40}))
    more.look()
    assert more.bench() is more.shared.bench
    assert more.take().kept is None
    add(store, 24, seed=2)
    more.look()
    assert more.bench() is not more.shared.bench


def test_whoever_is_forgotten_takes_all_of_them_along_in_one_transaction(
    store: Store, base: Base
) -> None:
    add(store, 40, seed=1)
    add(store, 40, seed=2, person="ben")
    statistics = made(store, base)
    statistics.take()
    store.state.put(JUDGED, {"windows": 1})
    kept = kept_of(store)
    assert kept is not None
    assert kept.people == {"ada", "ben"}
    assert store.forget("ben").deleted["learned"] == 3
    assert not there(store)
    statistics.look()
    kept = kept_of(store)
    assert kept is not None
    assert (kept.windows, kept.people) == (40, frozenset({"ada"}))


@pytest.mark.parametrize("way", ["forget", "drop", "off"])
def test_what_goes_while_they_are_taken_does_not_come_back_with_them(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    add(store, 40, seed=1)
    config = [device_config().model_copy(update={"statistics": OWN})]
    statistics = Statistics(store, workbench(base), lambda: config[0], Turned().world())

    def meanwhile(*args: Any, **words: Any) -> Calibration:
        if way == "forget":
            store.forget("ada")
            add(store, 40, seed=1)  # under the same name, somebody else perhaps
        elif way == "drop":
            drop_kept(store)
        else:
            config[0] = device_config()
        return calibration_of(*args, **words)

    monkeypatch.setattr(module, "calibration_of", meanwhile)
    statistics.refresh()
    assert not there(store)


def test_bytes_that_are_not_those_of_their_digest_are_damaged(store: Store, base: Base) -> None:
    add(store, 40, seed=1)
    made(store, base).refresh()
    value = store.state.get(KEPT)
    value["maps"] |= {name: value["maps"][name][::-1] for name in list(value["maps"])[:1]}
    store.state.put(KEPT, value)
    with pytest.raises(StorageError) as refused:
        kept_of(store)
    assert refused.value.code == "statistics-damaged"


def test_the_table_is_checked_and_comes_back_from_its_own_text() -> None:
    config = device_config().model_copy(update={"statistics": OWN})
    assert parse_config(render_config(config)) == config
    assert not device_config().statistics.own
    for line in ("windows = 8", "min-windows = 1", "windows = 20000"):
        with pytest.raises(InputError, match="breaks"):
            parse_config(f'name = "kitchen-1"\n[statistics]\n{line}\n')
