"""What the agent says of itself, judges and serves; and "not now" while it is busy."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from clients.agent.answering.labelled import labelled, probe_of
from clients.agent.answering.releases import MOST_TRIES, WANTED
from clients.agent.learner import Learner
from clients.agent.power.readings import Readings
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base
from fleet.errors import InputError, MismatchError, RoundError
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from fleet.measure.f1 import macro_f1_present
from tests.clients.agent.answering.devices import (
    LABELS,
    NAME,
    Device,
    Turned,
    cut_off_at,
    fill,
    opened,
    release_message,
    train_message,
)
from tests.clients.agent.serving.factories import chain_of

DEADLINE_S = 30.0
NOTHING = Payload(np.zeros(0, np.float32), {})


def status_of(device: Device) -> DeviceStatus:
    return DeviceStatus.model_validate(dict(device.ask("query.status", NOTHING).config))


def test_the_status_says_what_there_is_to_train_on_and_what_is_served(
    device: Device, releases: list[Release]
) -> None:
    before = status_of(device)
    assert (before.device, before.train_windows, before.test_windows) == (NAME, 24, 12)
    assert (before.usable, before.release, before.version) == (True, 0, "0")
    device.ask("query.release", release_message(releases[2]))
    after = status_of(device)
    served = device.serving.served
    assert served is not None
    assert (after.release, after.serves) == (2, served.digest)
    assert after.serves != before.serves


def test_a_device_without_labels_says_so(device: Device) -> None:
    device.store.labels.range("ada", 0.0, 1e9, None, "ada")
    status = status_of(device)
    assert (status.usable, status.reason) == (False, "no labelled windows to train on")


def test_an_evaluation_counts_the_held_out_windows_under_the_merged_release(
    device: Device, base: Base, releases: list[Release]
) -> None:
    windows = labelled(device.store, base.record).windows
    counts = Learner(NAME, base, windows).evaluate(releases[2].state)
    answer = device.ask("evaluate", release_message(releases[2]))
    assert answer.values["num-examples"] == 12
    assert answer.values["confusion"] == counts.ravel().tolist()
    assert status_of(device).release == 0  # judging is not serving


def test_class_counts_stay_on_the_device_where_its_owner_wants_that(
    device: Device, base: Base, releases: list[Release]
) -> None:
    device.set_policy(share_class_counts=False)
    windows = labelled(device.store, base.record).windows
    counts = Learner(NAME, base, windows).evaluate(releases[2].state)
    answer = device.ask("evaluate", release_message(releases[2]))
    assert dict(answer.values) == {"num-examples": 12, "macro-f1": macro_f1_present(counts)}
    device.store.labels.range("ada", 0.0, 1e9, None, "ada")  # all are taken back
    none = device.ask("evaluate", release_message(releases[2]))
    assert dict(none.values) == {"num-examples": 0}


def test_health_carries_readings_store_and_the_last_outcome(
    device: Device, releases: list[Release]
) -> None:
    device.ask("query.release", release_message(releases[1]))
    device.ask("train", train_message(releases[1]))
    config = device.ask("query.health", NOTHING).config
    assert config["temperature_c"] == 40.0
    assert "battery_percent" not in config  # no sensor says
    assert (config["release-outcome"], config["last-training"]) == ("promoted", "finished")
    assert (config["windows"], config["labelled"], config["waiting-updates"]) == (36, 36, 0)


def test_one_message_brings_a_device_that_missed_fifty_releases_where_the_others_are(
    filled: Path, base: Base, tmp_path: Path
) -> None:
    import shutil

    chain = chain_of(base, 50, step=0.01)
    ends, sizes = [], []
    for name, missed in (("saw-all", chain[1:]), ("was-away", chain[50:])):
        state = Path(shutil.copytree(filled, tmp_path / name))
        with opened(state, Turned().world()) as device:
            for release in missed:
                message = release_message(release)
                sizes.append(message.array.nbytes)
                answer = device.ask("query.release", message)
            ends.append((answer.config["serves"], answer.config["release"]))
    assert ends[0] == ends[1]
    assert ends[0][1] == 50
    assert len(sizes) == 51
    assert len(set(sizes)) == 1


def test_a_rollback_returns_the_digest_that_was_served_before(
    device: Device, releases: list[Release]
) -> None:
    served = [
        device.ask("query.release", release_message(releases[number])).config["serves"]
        for number in (1, 2, 1, 2)
    ]
    assert served[:2] == served[2:]
    assert served[0] != served[1]


def labelled_by(state: Path, release: Release) -> None:
    """Label the held-out windows as a release recognises them, so that it is right about all."""
    with opened(state, Turned().world()) as device:
        fill_in = device.store.windows.load((3, 16), split="held-out")
        base = device.serving.held.base
        probe = probe_of(device.store, base.record)
        assert probe is not None
        learner = Learner(NAME, base, labelled(device.store, base.record).windows)
        import torch

        from fleet.adapt.train import predict

        classes = predict(learner.bench.served(release.state), torch.from_numpy(probe.x))
        for window, label in zip(fill_in.ids, classes, strict=True):
            device.store.labels.window(int(window), LABELS[int(label)], "oracle")


def test_a_release_that_does_worse_on_the_devices_own_windows_is_not_served(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    fill(state, train=0, held_out=40, person="ben")
    labelled_by(state, releases[0])
    with opened(state, turned.world()) as device:
        with pytest.raises(RoundError, match=r"would fall from 1\.000") as caught:
            device.ask("query.release", release_message(releases[4]))
        assert caught.value.code == "probe-fell"
        assert status_of(device).release == 0
        assert device.agent.releases.finish() is None  # what was refused is not tried again
        config = device.ask("query.health", NOTHING).config
        assert config["release-outcome"] == "probe-fell"


def test_going_back_is_the_operators_decision_and_no_probe_stops_it(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    fill(state, train=0, held_out=40, person="ben")
    labelled_by(state, releases[4])
    with opened(state, turned.world()) as device:
        device.ask("query.release", release_message(releases[4]))
        assert status_of(device).release == 4
        device.ask("query.release", release_message(releases[0]))
        assert status_of(device).release == 0


def test_a_swap_that_was_cut_off_is_finished_at_the_next_start(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        cut_off_at(device, releases[3])
    with opened(state, turned.world()) as device:
        outcome = device.agent.releases.finish()
        assert outcome is not None
        assert outcome.swapped
        assert status_of(device).release == 3
        assert device.agent.releases.finish() is None


def test_what_was_wanted_and_is_gone_is_said_and_does_no_harm(state: Path, turned: Turned) -> None:
    with opened(state, turned.world()) as device:
        device.store.state.put(WANTED, "000009-aaaaaaaaaaaaaaaa")
        assert device.agent.releases.finish() is None
        assert turned.said("release.kept")[-1]["reason"] == "no-such-release"


def test_a_release_that_the_agent_is_lost_at_again_and_again_is_given_up(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(serving: Serving, kept: KeptRelease, probe: object) -> None:
        tries.append(kept.number)
        raise MemoryError

    tries: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Serving, "promote", killed)
        with opened(state, turned.world()) as device, pytest.raises(MemoryError):
            device.ask("query.release", release_message(releases[3]))
        for _ in range(MOST_TRIES - 1):
            with opened(state, turned.world()) as device, pytest.raises(MemoryError):
                device.agent.finish()
        with opened(state, turned.world()) as device:
            device.agent.finish()
            assert tries == [3] * MOST_TRIES
            assert turned.said("release.kept")[-1]["reason"] == "agent-lost"
            assert device.store.state.get(WANTED) is None
    with opened(state, turned.world()) as device:
        device.ask("query.release", release_message(releases[3]))
        assert status_of(device).release == 3


def test_a_release_that_is_kept_from_being_tried_is_wanted_on(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        cut_off_at(device, releases[3])
        device.serving._lock_wait_s = 0.0
        with Serving(state).locked():
            for _ in range(MOST_TRIES + 1):
                device.agent.finish()
                assert turned.said("release.kept")[-1]["reason"] == "model-busy"
        device.agent.finish()
        assert status_of(device).release == 3


def test_what_was_cut_off_is_not_brought_while_the_agent_is_at_work(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    def read() -> Readings:
        device.store.state.put(WANTED, kept.name)
        with pytest.raises(RoundError) as caught:
            device.agent.finish()
        assert caught.value.code == "agent-busy"
        return Readings()

    with opened(state, turned.world(read=read)) as device:
        kept = device.serving.take(releases[3])
        device.ask("train", train_message(releases[1]))
        assert status_of(device).release == 1


def test_who_waits_for_the_same_answer_does_not_hold_up_the_agents_end(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    working, go_on = threading.Event(), threading.Event()
    codes: list[str] = []

    def read() -> Readings:
        working.set()
        assert go_on.wait(DEADLINE_S)
        return Readings()

    def ask() -> None:
        with pytest.raises(RoundError) as caught:
            device.ask("train", train_message(releases[1]), limit_s=7200.0)
        codes.append(caught.value.code)

    world = turned.world(read=read)
    with opened(state, world) as device:
        asking = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
        asking[0].start()
        assert working.wait(DEADLINE_S)
        asking[1].start()
        world.stopping.set()
        asking[1].join(DEADLINE_S)
        assert not asking[1].is_alive()
        go_on.set()
        assert device.agent.rest(DEADLINE_S)
        asking[0].join(DEADLINE_S)
    assert codes == ["agent-stopping"] * 2


def test_who_comes_while_the_agent_works_is_told_not_now(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    working, go_on = threading.Event(), threading.Event()

    def read() -> Readings:
        working.set()
        assert go_on.wait(DEADLINE_S)
        return Readings()

    answers = []
    with opened(state, turned.world(read=read)) as device:
        message = train_message(releases[1])
        asking = [
            threading.Thread(target=lambda: answers.append(device.ask("train", message)))
            for _ in range(2)
        ]
        asking[0].start()
        assert working.wait(DEADLINE_S)
        for kind, payload in (
            ("evaluate", release_message(releases[1])),
            ("query.release", release_message(releases[2])),
            ("train", train_message(releases[1], seed=7)),
        ):
            with pytest.raises(RoundError, match="not now, because") as caught:
                device.ask(kind, payload)
            assert caught.value.code == "agent-busy"
        assert status_of(device).device == NAME  # how it is can be asked at any time
        asking[1].start()  # the same plan again: it waits for the same answer
        go_on.set()
        for thread in asking:
            thread.join(DEADLINE_S)
        assert len(answers) == 2
        assert answers[0].array.tobytes() == answers[1].array.tobytes()
        finished = [e for e in device.store.journal.entries() if e.event == "finished"]
        assert len(finished) == 1


def test_an_unknown_message_is_refused_with_what_is_known(device: Device) -> None:
    with pytest.raises(InputError, match=r"query\.status") as caught:
        device.ask("query.fortune", NOTHING)
    assert caught.value.code == "unknown-message"


def test_a_release_of_another_base_or_method_is_refused(
    device: Device, releases: list[Release]
) -> None:
    message = release_message(releases[1])
    other = Payload(message.array, {**message.config, "base": "0" * 64})
    with pytest.raises(MismatchError) as caught:
        device.ask("query.release", other)
    assert caught.value.code == "base-missing"
    nameless = Payload(message.array, {k: v for k, v in message.config.items() if k != "method"})
    with pytest.raises(MismatchError) as caught:
        device.ask("query.release", nameless)
    assert caught.value.code == "release-method"
    assert Serving(device.agent._held.state).folder.release_names() == []
