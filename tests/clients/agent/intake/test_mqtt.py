from __future__ import annotations

import importlib
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.agent.cli import ingest as command
from clients.agent.cli.root import run
from clients.agent.config import DeviceConfig, save_config
from clients.agent.intake import mqtt
from clients.agent.intake.broker import Broker, BrokerError
from tests.clients.agent.intake.recordings import small_spec
from tests.clients.agent.store.windows import opened
from tests.services.mosquitto import publish, running


def refused(arguments: tuple[object, ...], capsys: pytest.CaptureFixture[str], code: int) -> Any:
    assert run([*map(str, arguments), "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_broker_that_stays_away_is_an_error_after_bounded_waits(tmp_path: Path) -> None:
    now, waits = [0.0], []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    with opened(tmp_path) as store, pytest.raises(BrokerError) as caught:
        mqtt.ingest_mqtt(
            Broker("127.0.0.1", closed_port()),
            *("waist", "jsonl", small_spec(), store, "ada", "waist"),
            device="kitchen",
            idle_s=1.0,
            away_s=300.0,
            clock=lambda: now[0],
            wait=wait,
            chance=lambda: 1.0,
        )
    assert caught.value.code == "broker-away"
    assert caught.value.exit_code == 2
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(waits) == mqtt.LONGEST_WAIT_S
    assert sum(waits) == 300.0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("walk.csv", "--mqtt", "mqtt://h/a"), "source-unclear"),
        (("--socket", "s", "--mqtt", "mqtt://h/a"), "source-unclear"),
        (("--tls-ca", "ca.crt"), "source-unclear"),
        (("walk.csv", "--credentials", "c"), "source-unclear"),
        (("--mqtt", "mqtt://h"), "bad-topic"),
        (("--mqtt", "tcp://h/a"), "bad-broker"),
        (("--mqtt", "mqtt://h/a", "--tls-ca", "ca.crt"), "bad-broker"),
        (("--mqtt", "mqtt://h/a", "--credentials", "absent"), "credentials-unreadable"),
    ],
)
def test_what_is_asked_wrongly_of_a_broker_is_refused_before_the_store_is_opened(
    arguments: tuple[str, ...], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = refused(("ingest", *arguments, "--state", tmp_path / "no"), capsys, 4)
    assert answer["error_code"] == code
    assert not (tmp_path / "no").exists()


def test_without_the_extra_it_says_which_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    answer = refused(("ingest", "--mqtt", "mqtt://h/a", "--state", tmp_path), capsys, 4)
    assert answer["error_code"] == "extra-missing"
    assert "device-mqtt" in answer["message"]


def test_the_command_needs_no_paho_until_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    assert importlib.reload(command).ingest.__name__ == "ingest"
    assert command.AWAY_S == mqtt.AWAY_S


def test_roots_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    for name in ("ca.crt", "absent"):
        with opened(tmp_path / "state") as store, pytest.raises(Exception) as caught:
            mqtt.ingest_mqtt(
                Broker("127.0.0.1", 1, tls=True, ca=tmp_path / name),
                *("waist", "jsonl", small_spec(), store, "ada", "waist"),
                device="kitchen",
                idle_s=1.0,
            )
        assert getattr(caught.value, "code", "") == "ca-unreadable"


def test_samples_come_in_from_a_real_broker(
    tmp_path: Path, tiny_base_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Skipped, with the reason, where there is none; `make test-services` has the rest."""
    state = tmp_path / "state"
    with running(tmp_path / "broker") as broker:
        (state / "model").mkdir(parents=True)
        shutil.copy(tiny_base_file, state / "model" / "base.safetensors")
        config = DeviceConfig(name="kitchen")
        save_config(config, state)
        url = f"mqtt://127.0.0.1:{broker.port}/waist"
        asked = ("ingest", "--mqtt", url, "--state", state, "--idle-s")
        for first, count, samples in ((0, 0, 0), (0, 200, 200), (190, 60, 60)):
            rows = [
                {"time": at / 50, **dict.fromkeys(config.intake.channels, at)}
                for at in range(first, first + count)
            ]
            publish(broker, "waist", [json.dumps(row).encode() for row in rows])
            report = refused((*asked, "0.3"), capsys, 0)["data"]["sources"]["waist"]
            assert report["samples"] == samples
            assert report["duplicates"] == (10 if first else 0)
            assert report["jumps_back"] == report["gaps"] == 0
