"""A real MQTT broker on loopback for tests: on PATH, or where ``make test-services`` put it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

ROOT = Path(__file__).parents[2]
FETCHED = ROOT / ".services" / "mosquitto" / "root"
ABSENT = "no mosquitto here; `make test-services` fetches one and runs all tests that need it"
DEADLINE_S = 30.0
PACE = threading.Event()  # never set: waiting for it paces what asks again and again
PLACES = [*os.get_exec_path(), "/usr/sbin", str(FETCHED / "usr/sbin"), str(FETCHED / "usr/bin")]


def program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join(PLACES))


def environment() -> dict[str, str]:
    folders = {str(path.parent) for path in FETCHED.glob("usr/lib/**/*.so*")}
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(sorted(folders))}


def until(true: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end_s, f"{what} took longer than {deadline_s:g} s"
        PACE.wait(0.005)


class Mosquitto:
    """A broker that keeps sessions in a folder, so that it can be restarted."""

    def __init__(self, folder: Path, lines: Iterable[str] = ("allow_anonymous true",)) -> None:
        found = program("mosquitto")
        if found is None:
            pytest.skip(ABSENT)
        self._program = found
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        user = ["user root"] if os.geteuid() == 0 else []
        config = [f"listener {self.port} 127.0.0.1", *lines, *user, "max_queued_messages 0"]
        config += ["persistence true", f"persistence_location {folder}/", "log_type all"]
        (folder / "mosquitto.conf").write_text("\n".join(config) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self.folder / "mosquitto.conf")],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self._answers, f"the broker's start, see {self.folder}/log")

    def stop(self) -> None:
        """End it politely: it writes its sessions down."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False


@contextmanager
def running(folder: Path, lines: Iterable[str] = ("allow_anonymous true",)) -> Iterator[Mosquitto]:
    broker = Mosquitto(folder, lines)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def publish(
    broker: Mosquitto, topic: str, payloads: Iterable[bytes], *, qos: int = 1, retain: bool = False
) -> None:
    """Publish; returns when the broker has acknowledged all of it."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        for one in [client.publish(topic, payload, qos, retain) for payload in payloads]:
            assert one.rc == MQTTErrorCode.MQTT_ERR_SUCCESS
            one.wait_for_publish(DEADLINE_S)
            assert one.is_published()
    finally:
        client.disconnect()
        client.loop_stop()
