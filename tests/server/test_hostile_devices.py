from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fleet.errors import TooFewDevices
from fleet.federate.admission import Reason
from fleet.federate.releases import Release
from tests.server.running import (
    CLASSES,
    LIAR,
    Lie,
    Setting,
    declining,
    failing,
    make_app,
    nothing,
    raw,
    saved,
    spoiled,
    with_array,
    with_config,
    with_records,
    zipped,
)

HUGE = saved(np.zeros(3, np.float32)).replace(b"(3,)", b"(3" + b"0" * 14 + b",)")
LIES: list[tuple[str, Reason, Lie]] = [
    ("NaN", Reason.not_finite, with_array(spoiled)),
    ("too large", Reason.entry_too_large, with_array(lambda a: a + np.float32(9))),
    ("another shape", Reason.wrong_shape, with_array(lambda a: a[:-1])),
    ("two dimensions", Reason.wrong_shape, with_array(lambda a: a.reshape(1, -1))),
    ("float64", Reason.wrong_dtype, with_array(lambda a: a.astype(np.float64))),
    ("garbage", Reason.malformed, with_array(lambda a: raw(b"garbage"))),
    ("nothing", Reason.malformed, with_array(lambda a: raw(b""))),
    ("a zip archive", Reason.malformed, with_array(lambda a: raw(zipped()))),
    ("a damaged zip archive", Reason.malformed, with_array(lambda a: raw(zipped()[:40]))),
    ("more than memory holds", Reason.malformed, with_array(lambda a: raw(HUGE))),
    ("a pickle", Reason.malformed, with_array(lambda a: raw(saved(np.array([None]))))),
    ("a cut array", Reason.malformed, with_array(lambda a: raw(saved(a)[:-1]))),
    (
        "one more array",
        Reason.malformed,
        with_records(lambda r: r.array_records["arrays"].update(more=Array(np.zeros(1)))),
    ),
    (
        "one more array record",
        Reason.malformed,
        with_records(lambda r: r.update(more=ArrayRecord([np.zeros(1)]))),
    ),
    (
        "one more metric",
        Reason.malformed,
        with_records(lambda r: r.update(metrics=MetricRecord({"accuracy": 1.0}))),
    ),
    ("no config", Reason.malformed, with_records(lambda r: r.pop("config"))),
    ("no record", Reason.malformed, nothing),
    ("no array", Reason.wrong_shape, with_records(lambda r: r.pop("arrays"))),
    ("one more key", Reason.malformed, with_config(more=1)),
    ("one more list", Reason.malformed, with_config(more=[1, 2])),
    ("a loss that is no number", Reason.malformed, with_config(loss=float("nan"))),
    ("another device's name", Reason.wrong_device, with_config(device="person-99")),
    ("no windows", Reason.implausible_examples, with_config(examples=0)),
    ("all windows of the world", Reason.implausible_examples, with_config(examples=10**12)),
    ("an exception", Reason.failed, failing),
    ("a refusal of its own", Reason.declined, declining),
]


@pytest.mark.parametrize(("reason", "lie"), [x[1:] for x in LIES], ids=[x[0] for x in LIES])
def test_a_hostile_device_is_refused_and_the_others_make_the_release(
    setting: Setting, without_liar: Release, reason: Reason, lie: Lie
) -> None:
    kept = setting.run(setting.grid(make_app({"train": lie})))
    liar = setting.people.devices[LIAR]
    assert kept.reasons() == {liar: reason}
    assert kept.records[0].refused[0].detail
    assert kept.releases[-1].digest == without_liar.digest


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (failing, "the sensor is gone"),
        (nothing, "one config"),
        (declining, "hot: 80"),
        (with_records(lambda r: r["config"].update(device="")), "device"),
        (with_records(lambda r: r["config"].update(reason="asleep")), "asleep"),
        (with_records(lambda r: r["config"].update(train_windows=-1)), "train_windows"),
    ],
)
def test_a_node_whose_status_is_none_is_left_out_with_the_reason(
    setting: Setting, without_liar: Release, lie: Lie, told: str
) -> None:
    kept, shell, _ = setting.shell_run(setting.grid(make_app({"query.status": lie})), minimum=2)
    (reason,) = shell.asking.unusable.values()
    assert told in reason
    assert kept.releases[-1].digest == without_liar.digest


def test_too_few_usable_devices_end_the_run_within_the_wait_and_say_why(setting: Setting) -> None:
    grid = setting.grid(make_app({"query.status": failing}))
    with pytest.raises(TooFewDevices, match="2 usable") as ended:
        setting.run(grid, minimum=3)
    assert 30.0 <= grid.clock() <= 32.0
    assert "the sensor is gone" in ended.value.hint


def garbled(confusion: Any) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        metrics = {} if confusion is None else {"confusion": confusion}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return lie


@pytest.mark.parametrize(
    "lie",
    [
        nothing,
        failing,
        garbled(None),
        garbled(5),
        garbled([1, 2, 3]),
        garbled([1, 2, 3, 4]),
        garbled([0.5] * CLASSES**2),
        garbled([float("nan")] * CLASSES**2),
        garbled([-1] * CLASSES**2),
        garbled([2**62] * CLASSES**2),
        garbled([]),
    ],
)
def test_an_evaluation_that_is_not_whole_is_left_out(setting: Setting, lie: Lie) -> None:
    kept = setting.run(setting.grid(make_app({"evaluate": lie})))
    honest = sorted(set(setting.people.devices) - {setting.people.devices[LIAR]})
    assert {number: sorted(e) for number, e in kept.evaluations.items()} == {0: honest, 1: honest}
    assert len(kept.records[0].accepted) == 3
