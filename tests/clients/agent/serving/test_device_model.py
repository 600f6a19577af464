"""``DeviceModel``: answers as what is served, follows swaps, never reads half a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clients.agent.serving.folder import CURRENT
from clients.agent.serving.latency import main as print_latency
from clients.agent.serving.latency import measure
from clients.agent.serving.model import BATCH, DeviceModel
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.errors import InputError
from fleet.federate.releases import Release
from tests.clients.agent.serving.factories import (
    CHANNELS,
    LABELS,
    WINDOW,
    probabilities_of,
    promoted,
    raw_windows,
)

ROOT = Path(__file__).resolve().parents[4]


def test_it_answers_raw_windows_as_the_release_does(
    state: Path, base: Base, releases: list[Release]
) -> None:
    promoted(state, releases[2])
    windows = raw_windows(7)
    labels, probabilities = DeviceModel(state).predict(windows)
    wanted = probabilities_of(base, releases[2], windows).numpy()
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-3, atol=1e-5)
    assert labels == tuple(LABELS[i] for i in wanted.argmax(axis=1))
    assert probabilities.dtype == np.float32


def test_more_windows_than_a_batch_answer_as_each_alone(state: Path) -> None:
    model, windows = DeviceModel(state), raw_windows(BATCH + 3)
    _, together = model.predict(windows)
    _, alone = model.predict(windows[-1:])
    np.testing.assert_allclose(together[-1:], alone, rtol=1e-4, atol=1e-6)
    assert len(together) == BATCH + 3


def test_no_windows_have_no_answers(state: Path) -> None:
    labels, probabilities = DeviceModel(state).predict(raw_windows(0))
    assert (labels, probabilities.shape) == ((), (0, len(LABELS)))


@pytest.mark.parametrize(
    ("windows", "code"),
    [
        (np.zeros((CHANNELS, WINDOW)), "windows-shape"),
        (np.zeros((1, CHANNELS, WINDOW + 1)), "windows-shape"),
        (np.zeros((1, CHANNELS, WINDOW), complex), "windows-dtype"),
        (np.full((1, CHANNELS, WINDOW), np.nan), "windows-not-finite"),
        (np.full((1, CHANNELS, WINDOW), np.inf), "windows-not-finite"),
    ],
)
def test_windows_that_are_not_the_bases_are_refused(
    state: Path, windows: np.ndarray[tuple[int, ...], np.dtype[np.generic]], code: str
) -> None:
    with pytest.raises(InputError) as refused:
        DeviceModel(state).predict(windows)
    assert refused.value.code == code


def test_integers_are_taken_as_numbers(state: Path) -> None:
    model = DeviceModel(state)
    whole = np.arange(CHANNELS * WINDOW).reshape(1, CHANNELS, WINDOW)
    assert np.array_equal(model.predict(whole)[1], model.predict(whole.astype(np.float64))[1])


def test_it_follows_every_swap_without_a_restart(state: Path, releases: list[Release]) -> None:
    model, windows = DeviceModel(state), raw_windows(1)
    for release in releases[1:]:
        promoted(state, release)
        model.predict(windows)
        assert model.served.number == release.number
        assert model.problem == ""


def test_without_a_swap_nothing_is_read_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DeviceModel(state)

    def refuse(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("clients.agent.serving.model.open_served", refuse)
    monkeypatch.setattr("clients.agent.serving.folder.ModelFolder.pointer", refuse)
    model.predict(raw_windows(1))


def test_what_cannot_be_read_whole_is_not_served_and_tried_again(
    state: Path, releases: list[Release]
) -> None:
    promoted(state, releases[1])
    model, eager = DeviceModel(state, retry_s=3600), DeviceModel(state, retry_s=0)
    kept = promoted(state, releases[2])
    path = Serving(state).folder.served_file(kept.name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    model.predict(raw_windows(1))
    assert model.served.number == 1
    assert "no whole safetensors file" in model.problem
    path.write_bytes(whole)
    model.predict(raw_windows(1))
    assert model.served.number == 1  # not before retry_s
    path.write_bytes(whole[:-4] + b"\1\1\1\1")
    eager.predict(raw_windows(1))
    assert "was to be served" in eager.problem
    path.write_bytes(whole)
    eager.predict(raw_windows(1))
    assert (eager.served.number, eager.problem) == (2, "")


def test_where_current_is_damaged_from_the_start_the_one_before_answers(
    state: Path, releases: list[Release]
) -> None:
    promoted(state, releases[1])
    kept = promoted(state, releases[2])
    Serving(state).folder.served_file(kept.name).write_bytes(b"")
    model = DeviceModel(state)
    model.predict(raw_windows(1))
    assert model.served.number == 1
    assert model.problem


def test_a_pointer_that_vanishes_leaves_the_model_as_it_is(
    state: Path, releases: list[Release]
) -> None:
    promoted(state, releases[1])
    model = DeviceModel(state)
    (state / "model" / CURRENT).unlink()
    model.predict(raw_windows(1))
    assert (model.served.number, model.problem) == (1, "there is no current model any more")


def test_threads_that_read_through_swaps_get_whole_answers(
    state: Path, base: Base, releases: list[Release]
) -> None:
    windows = raw_windows(3)
    wanted = [probabilities_of(base, release, windows).numpy() for release in releases]
    model, stop, wrong = DeviceModel(state), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            _, got = model.predict(windows)
            if not any(np.allclose(got, each, rtol=1e-3, atol=1e-5) for each in wanted):
                wrong.append(got)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for release in [*releases[1:], *releases[1:3]]:
        promoted(state, release)
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert wrong == []
    model.predict(windows)
    assert model.served.number == 2


def test_threads_that_read_are_not_disturbed_by_one_that_folds_a_network(
    state: Path, base: Base
) -> None:
    model, windows, stop = DeviceModel(state), raw_windows(1), threading.Event()

    def fold() -> None:
        while not stop.is_set():
            folded_network(base)

    folding = threading.Thread(target=fold)
    folding.start()
    try:
        wanted = model.predict(windows)[1]
        for _ in range(300):
            assert np.array_equal(model.predict(windows)[1], wanted)
    finally:
        stop.set()
        folding.join(timeout=30)


def test_a_reader_in_another_process_never_sees_a_torn_model(
    state: Path, base: Base, releases: list[Release]
) -> None:
    serving, windows = Serving(state), raw_windows(2)
    kept = [serving.take(release) for release in releases[1:]]
    answers: dict[str, str] = {}
    for each in kept:
        assert serving.promote(each).swapped
        model = DeviceModel(state)
        answer = hashlib.sha256(model.predict(windows)[1].tobytes()).hexdigest()
        answers[model.served.digest] = answer
    serving.promote(kept[0])
    with subprocess.Popen(
        [sys.executable, "-m", "tests.clients.agent.serving.reader", str(state), "4"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for _ in range(6):
            for each in (kept[1], kept[2], kept[0]):
                assert serving.promote(each).swapped
        assert serving.promote(kept[3]).swapped
        out, problem = reader.communicate(timeout=90)
    assert reader.returncode == 0, problem
    report = json.loads(out)
    assert len(report["seen"]) >= 3  # it did see swaps
    for digest, seen in report["seen"].items():
        assert seen == [answers[digest]]


def test_latency_is_measured_beside_the_base(
    state: Path, releases: list[Release], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = promoted(state, releases[1])
    reading = measure(state, repeats=5, windows=2)
    assert (reading.served, reading.repeats, reading.windows) == (kept.name, 5, 2)
    assert min(reading.merged_ms, reading.base_ms, reading.raw_ms, reading.ratio) > 0
    print_latency([str(state), "--repeats", "3"])
    assert json.loads(capsys.readouterr().out)["served"] == kept.name


@pytest.mark.bench
def test_the_merged_model_is_as_fast_as_its_base(state: Path, releases: list[Release]) -> None:
    promoted(state, releases[1])
    assert 0.9 < measure(state, repeats=500).ratio < 1.1
