"""A base that knows one class more: what was labelled before it came trains from then on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients.agent.answering.labelled import labelled, probe_of
from clients.agent.learner import Learner
from clients.agent.serving.model import DeviceModel
from fleet.adapt.base import Base
from fleet.adapt.digest import digest_arrays
from fleet.errors import RoundError
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import (
    NAME,
    Device,
    Turned,
    fill,
    opened,
    release_message,
    train_message,
)
from tests.clients.agent.answering.moving import NEW, Move, growth_of, kernels_of, of_another_class
from tests.clients.agent.serving.factories import LABELS, raw_windows


@pytest.fixture(scope="module")
def move(base: Base, releases: list[Release]) -> Move:
    return growth_of(base, releases[2])


@pytest.fixture
def state(state: Path) -> Path:
    """A device that has windows of a class that its base does not know: 8 train, 5 are held out."""
    of_another_class(state, 8)
    of_another_class(state, 5, "held-out")
    return state


def told(device: Device, kind: str, move: Move) -> DeviceStatus:
    payload = move.message() if kind == "query.release" else release_message(move.release)
    return DeviceStatus.model_validate(dict(device.ask(kind, payload).config))


def test_windows_of_a_class_that_the_base_does_not_know_train_once_it_does(
    state: Path, turned: Turned, base: Base, releases: list[Release], move: Move
) -> None:
    with opened(state, turned.world()) as device:
        before = device.ask("train", train_message(releases[2]))
        assert before.config["examples"] == 24
        assert labelled(device.store, base.record).foreign == 8
        status = told(device, "query.status", move)
        assert (status.train_windows, status.test_windows) == (24, 12)
        status = told(device, "query.release", move)
        assert (status.train_windows, status.test_windows) == (24 + 8, 12 + 5)
        assert status.serves == kernels_of(move.base, move.release)
        update = device.ask("train", train_message(move.release))
        assert update.config["examples"] == 24 + 8
        windows = labelled(device.store, move.base.record).windows
        bare = Learner(NAME, move.base, windows).answer_plan(train_message(move.release))
        assert update.array.tobytes() == bare.array.tobytes()
    assert np.abs(update.array).max() > 0


def test_old_classes_keep_their_indices_and_what_is_answered_of_them(
    state: Path, turned: Turned, base: Base, releases: list[Release], move: Move
) -> None:
    with opened(state, turned.world()) as device:
        device.ask("query.release", release_message(releases[2]))
        old = labelled(device.store, base.record)
        model, x = DeviceModel(state, retry_s=0), raw_windows(16)
        before = model.predict(x)[1]
        told(device, "query.release", move)
        new = labelled(device.store, move.base.record)
        after = model.predict(x)[1]
        assert model.about.labels == (*LABELS, NEW)
    known = new.windows.train_y < len(LABELS)
    assert digest_arrays({"y": new.windows.train_y[known]}) == digest_arrays(
        {"y": old.windows.train_y}
    )
    assert set(new.windows.train_y[~known]) == {len(LABELS)}
    rest = after[:, : len(LABELS)] / after[:, : len(LABELS)].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rest, before, atol=1e-5)


def test_an_evaluation_counts_the_new_class_as_well(
    state: Path, turned: Turned, move: Move
) -> None:
    with opened(state, turned.world(), share_class_counts=True) as device:
        told(device, "query.release", move)
        found = device.ask("evaluate", release_message(move.release)).values
        counts = np.array(found["confusion"]).reshape(len(LABELS) + 1, -1)
        assert counts.sum() == found["num-examples"] == 12 + 5
        assert counts[len(LABELS)].sum() == 5


def rightly(state: Path, release: Release) -> None:
    """Serve a release and label windows held out as it recognises them: it is right about all."""
    with opened(state, Turned().world()) as device:
        device.ask("query.release", release_message(release))
    fill(state, train=0, held_out=40, person="ben")
    labels, _ = DeviceModel(state).predict(raw_windows(40, 2))
    with opened(state, Turned().world()) as device:
        for number, label in enumerate(labels):
            at = 200_000 + 10.0 * number
            device.store.labels.range("ben", at, at + 1, label, "ben")


def test_the_probe_of_the_move_asks_only_about_classes_that_both_know(
    state: Path, turned: Turned, base: Base, releases: list[Release], move: Move
) -> None:
    rightly(state, releases[2])
    with opened(state, turned.world()) as device:
        told(device, "query.release", move)
        read = turned.said("release.swapped")[-1]["probe"]
        assert read["windows"] == 12 + 40
        # A new row that wins over none of the old ones leaves every answer as it was.
        assert read["before"] == pytest.approx(read["after"], abs=0.05)
        probe = probe_of(device.store, device.serving.held.base.record)
        assert probe is not None
        assert len(probe.y) == 12 + 40 + 5
        # From now on the new class counts.
        device.ask("query.release", release_message(replace(move.release, number=4)))
        assert turned.said("release.swapped")[-1]["probe"]["windows"] == 12 + 40 + 5


def test_a_grown_base_that_sees_its_new_class_everywhere_is_held_back_by_the_probe(
    state: Path, turned: Turned, releases: list[Release], move: Move
) -> None:
    bias = move.base.arrays["head.bias"] + np.eye(len(LABELS) + 1, dtype=np.float32)[-1] * 100
    greedy = replace(move.base, arrays={**move.base.arrays, "head.bias": bias})
    release = replace(move.release, base=greedy.digest)
    rightly(state, releases[2])
    with opened(state, turned.world()) as device:
        with pytest.raises(RoundError) as why:
            told(device, "query.release", Move(greedy, release))
        assert why.value.code == "probe-fell"
        status = told(device, "query.status", move)
        assert (status.release, status.train_windows) == (2, 24)
        assert told(device, "query.release", move).train_windows == 32


def test_back_on_the_base_before_the_new_class_waits_again(
    state: Path, turned: Turned, releases: list[Release], move: Move
) -> None:
    with opened(state, turned.world()) as device:
        told(device, "query.release", move)
        device.ask("query.release", release_message(releases[1]))
        assert device.ask("train", train_message(releases[1])).config["examples"] == 24
        device.ask("query.release", release_message(move.release))
        assert device.ask("train", train_message(move.release)).config["examples"] == 32
