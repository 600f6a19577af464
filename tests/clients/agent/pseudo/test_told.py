"""What people and the operator's health query are told of pseudo-labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clients.agent.cli.root import run
from clients.agent.config import save_config
from clients.agent.pseudo.kept import KEPT
from clients.agent.pseudo.settings import PseudoLabels
from clients.agent.pseudo.summary import REASONS, line, standing
from clients.agent.store import Store
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import Device, Turned, device_config, train_message
from tests.clients.agent.pseudo.unlabelled import ON, guessing

NOTHING = Payload(np.zeros(0, np.float32), {})


def health(device: Device) -> dict[str, object]:
    told = device.ask("query.health", NOTHING).config
    return {name: value for name, value in told.items() if name.startswith("pseudo")}


def said(device: Device, on: bool = True) -> str:
    return line(standing(device.store, device.serving.folder, on))


def test_health_and_people_hear_how_many_the_last_training_took_and_why_none(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with guessing(state, turned.world()) as device:
        assert said(device) == "on; no training yet"
        assert health(device) == {}
        device.ask("train", train_message(releases[1]))
        assert health(device) == {"pseudo-labels": 12}
        assert said(device).startswith(
            "on; 12 of 40 windows in the last training with them (right on "
        )
        assert "pseudo" not in str(device.ask("query.status", NOTHING).config)
        device.config[0] = device.config[0].model_copy(
            update={"pseudo_labels": ON.model_copy(update={"precision": 0.99})}
        )
        device.ask("train", train_message(releases[2]))
        assert health(device) == {"pseudo-labels": 0, "pseudo-labels-none": "few-held-out"}
        assert "none in the last training with them: too few held-out windows" in said(device)
        device.config[0] = device.config[0].model_copy(update={"pseudo_labels": PseudoLabels()})
        assert health(device) == {}
        assert said(device, on=False) == "off"


def test_what_is_damaged_is_said_and_forgotten_with_anybody(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with guessing(state, turned.world()) as device:
        device.ask("train", train_message(releases[1]))
        store: Store = device.store
        store.state.put(KEPT, {**store.state.get(KEPT), "said": {}})
        assert "cannot be read" in said(device)
        assert health(device) == {}
        store.forget("ben")
        assert said(device) == "on; no training yet"


def test_the_status_has_a_line_of_them(
    state: Path, turned: Turned, releases: list[Release], capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(device_config().model_copy(update={"pseudo_labels": ON}), state)
    with guessing(state, turned.world()) as device:
        device.ask("train", train_message(releases[1]))
    assert run(["status", "--state", str(state)]) == 0
    assert "pseudo-labels  on; 12 of 40 windows in the last" in capsys.readouterr().out
    assert run(["status", "--state", str(state), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]["pseudo_labels"]
    assert (data["on"], data["last"]["used"]) == (True, 12)
    assert set(REASONS) >= {"no-held-out", "few-held-out"}
