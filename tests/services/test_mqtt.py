from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.agent.config import DeviceConfig, save_config
from clients.agent.intake.broker import Broker, BrokerError
from clients.agent.intake.mqtt import ingest_mqtt
from clients.agent.intake.sources import ingest_file
from clients.agent.store import open_reader
from clients.agent.store.store import Store
from fleet.adapt.base import Base
from tests.clients.agent.doctor.authority import Authority
from tests.clients.agent.intake.recordings import small_spec, write_csv
from tests.clients.agent.store.windows import opened
from tests.clients.conftest import tiny_base, tiny_base_file
from tests.services.killed import ingest
from tests.services.mosquitto import (
    DEADLINE_S,
    ROOT,
    Mosquitto,
    environment,
    program,
    publish,
    running,
    until,
)

__all__ = ["tiny_base", "tiny_base_file"]

pytestmark = pytest.mark.services
Array = NDArray[np.float64]
SHAPE = (2, 8)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(tmp_path / "broker") as one:
        yield one


def recording(count: int, channels: int = 2) -> tuple[Array, Array]:
    values = np.random.default_rng(count).normal(size=(count, channels))
    return 1000 + np.arange(count) / 50, values


def messages(names: Sequence[str], times: Array, values: Array, each: int) -> list[bytes]:
    lines = [
        json.dumps({"time": at, **dict(zip(names, row, strict=True))})
        for at, row in zip(times.tolist(), values.tolist(), strict=True)
    ]
    return ["\n".join(lines[at : at + each]).encode() for at in range(0, len(lines), each)]


def of_a_file(folder: Path, count: int) -> tuple[NDArray[np.float32], Array, dict[str, int]]:
    """What the same samples become out of a file."""
    times, values = recording(count)
    path = write_csv(folder / "same.csv", ("a", "b"), times, values)
    with opened(folder / "of-a-file") as store:
        ingest_file(path, "csv", small_spec(), store, "ada")
        return of_store(store)


def of_store(store: Store) -> tuple[NDArray[np.float32], Array, dict[str, int]]:
    found = store.windows.load(SHAPE)
    return found.x, found.start_s, dict(store.counters.all())


def assert_same(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> None:
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert one[2] == other[2]


def test_an_intake_killed_at_every_effect_loses_and_repeats_nothing(
    broker: Mosquitto, tmp_path: Path
) -> None:
    count = 600
    state = tmp_path / "state"
    ingest(broker.port, state, 0.1)  # from now on the broker keeps what comes
    publish(broker, "waist", messages(("a", "b"), *recording(count), 1))
    done = subprocess.run(
        [sys.executable, "-m", "tests.services.killed", str(broker.port), str(state)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deaths"] > 20
    with opened(state) as store:
        assert_same(of_store(store), of_a_file(tmp_path, count))


def in_background(port: int, state: Path, said: list[str], **changes: Any) -> threading.Thread:
    def work() -> None:
        values: dict[str, Any] = {"device": "kitchen", "idle_s": 2.0, "away_s": DEADLINE_S}
        with opened(state) as store:
            ingest_mqtt(
                Broker("127.0.0.1", port),
                *("waist", "jsonl", small_spec(), store, "ada", "waist"),
                **(values | changes),
                say=said.append,
            )

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def subscribed(said: list[str], times: int) -> bool:
    return sum(text.endswith(": subscribed") for text in said) >= times


def test_a_broker_that_restarts_while_samples_come_costs_nothing(
    broker: Mosquitto, tmp_path: Path
) -> None:
    sent = messages(("a", "b"), *recording(900), 3)
    said: list[str] = []
    thread = in_background(broker.port, tmp_path / "state", said)
    try:
        for part in range(3):
            until(lambda part=part: subscribed(said, part + 1), "the subscription")
            publish(broker, "waist", sent[100 * part : 100 * (part + 1)])
            if part < 2:
                broker.stop()
                broker.start()
    finally:
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert any("connecting again" in text for text in said)
    assert not any("kept no session" in text for text in said)
    with opened(tmp_path / "state") as store:
        assert_same(of_store(store), of_a_file(tmp_path, 900))


def test_a_publisher_that_says_it_twice_and_a_retained_sample_change_nothing(
    broker: Mosquitto, tmp_path: Path
) -> None:
    sent = messages(("a", "b"), *recording(200), 5)
    publish(broker, "waist", sent[:1], retain=True)
    state = tmp_path / "state"
    ingest(broker.port, state, 0.1)
    publish(broker, "waist", [*sent[:20], *sent[10:20]])
    assert ingest(broker.port, state) == 50
    publish(broker, "waist", sent[18:])
    assert ingest(broker.port, state) == 10
    with opened(state) as store:
        assert_same(of_store(store), of_a_file(tmp_path, 200))


def test_samples_that_complete_no_window_are_kept_before_they_are_acknowledged(
    broker: Mosquitto, tmp_path: Path
) -> None:
    sent = messages(("a", "b"), *recording(8), 1)
    for part in (sent[:0], sent[:3], sent[3:7], sent[7:]):
        publish(broker, "waist", part)
        ingest(broker.port, tmp_path / "state", 0.3)
    with opened(tmp_path / "state") as store:
        assert len(of_store(store)[0]) == 1
        assert_same(of_store(store), of_a_file(tmp_path, 8))


def test_rows_of_csv_are_the_time_and_the_configured_columns(
    broker: Mosquitto, tmp_path: Path
) -> None:
    times, values = recording(40)
    rows = [
        f"{at!r},{b!r},9,{a!r}" for at, (a, b) in zip(times.tolist(), values.tolist(), strict=True)
    ]
    with opened(tmp_path / "state") as store:
        for idle_s in (0.1, 0.5):
            report = ingest_mqtt(
                Broker("127.0.0.1", broker.port),
                *("home/+/imu", "csv", small_spec(), store, "ada", "imu"),
                device="kitchen",
                idle_s=idle_s,
                columns=("b", "other", "a"),
            )
            if idle_s == 0.1:
                publish(broker, "home/waist/imu", ["\r\n".join(rows).encode(), b"", b"oops\n\n"])
                publish(broker, "home/waist/imu", [b"x" * (1 << 20), b"y" * 70_000 + b"\n"])
        assert (report.samples, report.malformed) == (40, 3)
        found = of_store(store)
    np.testing.assert_array_equal(found[0], of_a_file(tmp_path, 40)[0])


def test_nonsense_ends_it_with_a_message(broker: Mosquitto, tmp_path: Path) -> None:
    ingest(broker.port, tmp_path / "state", 0.1)
    publish(broker, "waist", [b"no", b"sample", b"at all"])
    with pytest.raises(Exception, match="3 lines hold no sample") as caught:
        ingest(broker.port, tmp_path / "state")
    assert getattr(caught.value, "code", "") == "source-unreadable"


class Device:
    """The command, as a process of its own."""

    def __init__(self, folder: Path, base: Path, broker: Mosquitto) -> None:
        self.state = folder / "device"
        (self.state / "model").mkdir(parents=True)
        shutil.copy(base, self.state / "model" / "base.safetensors")
        save_config(DeviceConfig(name="kitchen"), self.state)
        self.url = f"mqtt://127.0.0.1:{broker.port}/waist"

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "clients.agent.cli.root", "ingest", "--format", "json"]
        command += ["--person", "ada", "--state", str(self.state), *(more or ("--mqtt", self.url))]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *more: str) -> tuple[int, Any]:
        process = self.start(*more)
        out, errors = process.communicate(timeout=2 * DEADLINE_S)
        return process.returncode, json.loads(out) | {"said": errors}

    def windows(self, shape: tuple[int, int]) -> int:
        with open_reader(self.state, clock=lambda: 1.0) as store:
            return len(store.windows.load(shape).ids)


def wait_subscribed(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if "subscribed" in line:
            return
    pytest.fail(f"it ended with {process.wait()}")


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)


def test_the_command_killed_at_random_moments_keeps_every_window_once(
    broker: Mosquitto, tmp_path: Path, tiny_base: Base, tiny_base_file: Path
) -> None:
    record = tiny_base.record
    names = [name for name, _ in record.channels]
    shape, part, each, parts = (len(names), record.window), 3000, 3, 3
    times, values = recording(parts * part, len(names))
    sent = messages(names, times, values, each)
    device = Device(tmp_path, tiny_base_file, broker)
    random = np.random.default_rng(0)
    with ExitStack() as stack:
        for number in range(parts):
            process = device.start("--mqtt", device.url)
            stack.callback(process.kill)
            wait_subscribed(process)
            target = device.windows(shape) + int(random.integers(1, 20))
            some = sent[number * part // each : (number + 1) * part // each]
            publisher = threading.Thread(target=publish, args=(broker, "waist", some))
            publisher.start()
            until(lambda target=target: device.windows(shape) >= target, "the windows")
            kill(process)
            publisher.join(DEADLINE_S)
    code, answer = device.run("--mqtt", device.url, "--idle-s", "2")
    assert code == 0, answer
    path = write_csv(tmp_path / "same.csv", names, times, values)
    other = Device(tmp_path / "other", tiny_base_file, broker)
    assert other.run(str(path))[0] == 0
    with opened(device.state) as one, opened(other.state) as two:
        mine, files = one.windows.load(shape), two.windows.load(shape)
        assert len(mine.ids) > 100
        np.testing.assert_array_equal(mine.x, files.x)
        np.testing.assert_array_equal(mine.start_s, files.start_s)
        assert one.counters.all() == two.counters.all()


def test_the_command_says_who_refused_it(tmp_path: Path, tiny_base_file: Path) -> None:
    hashed = program("mosquitto_passwd")
    if hashed is None:
        pytest.skip("there is no mosquitto_passwd beside this mosquitto")
    passwords = tmp_path / "passwords"
    passwords.write_text("ada:right\n")
    subprocess.run([hashed, "-U", str(passwords)], env=environment(), check=True)
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    secret = tmp_path / "credentials"
    secret.touch(0o600)
    with running(tmp_path / "broker", lines) as broker:
        device = Device(tmp_path, tiny_base_file, broker)
        asked = ("--mqtt", device.url, "--credentials", str(secret), "--idle-s", "0.2")
        secret.write_text("ada\nright\n")
        code, answer = device.run(*asked)
        assert code == 0, answer
        assert "unencrypted" in answer["said"]
        secret.write_text("ada\nwrong\n")
        code, answer = device.run(*asked)
        assert (code, answer["error_code"]) == (2, "broker-refused")
        assert "wrong" not in answer["message"] + answer["said"]
        assert device.run("--mqtt", device.url)[1]["error_code"] == "broker-refused"


# paho leaves the socket of a failed handshake to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tls_checks_the_broker(tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority()
    certificate, key = authority.server_files(tmp_path)
    roots = {}
    for name, one in (("ours", authority), ("theirs", stranger)):
        roots[name] = tmp_path / f"{name}.crt"
        roots[name].write_bytes(one.pem())
    lines = ["allow_anonymous true", f"certfile {certificate}", f"keyfile {key}"]

    def go(broker: Mosquitto, ca: Path | None) -> None:
        with opened(tmp_path / "state") as store:
            ingest_mqtt(
                Broker("127.0.0.1", broker.port, tls=True, ca=ca),
                *("waist", "jsonl", small_spec(), store, "ada", "waist"),
                device="kitchen",
                idle_s=0.1,
                away_s=1.0,
            )

    with running(tmp_path / "broker", lines) as broker:
        go(broker, roots["ours"])
        for ca in (roots["theirs"], None):
            with pytest.raises(BrokerError) as caught:
                go(broker, ca)
            assert caught.value.code == "broker-untrusted"
            del caught
            gc.collect()
