from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fleet.federate.records import DeviceStatus
from server.registry import Registry, open_registry
from simulations.box import running
from simulations.box.looking import Looker, is_done
from simulations.box.running import Steering
from simulations.box.wanted import Box, Wanted
from simulations.cli.up import drawn
from tests.server.registry.filled import DEVICES, OPERATOR, Clock, filled, opened, run_round

KERNELS = "c" * 64


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with open_registry(tmp_path / "registry.sqlite", clock=Clock()) as registry:
        yield filled(registry)


def serve(registry: Registry, device: str, release: int, kernels: str = KERNELS) -> None:
    status = DeviceStatus(
        device=device, train_windows=5, test_windows=5, serves=kernels, release=release
    )
    assert registry.devices.seen(status)


def text_of(seen: dict[str, Any]) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(drawn(seen))
    return console.export_text()


def test_a_box_is_done_when_all_serve_the_last_release_and_it_was_judged(
    registry: Registry,
) -> None:
    looker = Looker(registry)
    assert not is_done(looker.look(), 1, 3)
    release = run_round(registry)
    registry.releases.promote(1, actor=OPERATOR)
    for device in DEVICES[:2]:
        serve(registry, device, 1)
    counts = {device: [[3, 1], [0, 4]] for device in DEVICES[:2]}
    registry.observations.evaluated(1, counts, actor=OPERATOR)
    assert not is_done(looker.look(), 1, 3)
    serve(registry, DEVICES[2], 1, "d" * 64)
    assert not is_done(looker.look(), 1, 3)  # it serves other kernels under that number
    serve(registry, DEVICES[2], 1)
    seen = looker.look()
    assert is_done(seen, 1, 3)
    assert not is_done(seen, 2, 3)
    assert not is_done(seen, 1, 4)
    assert not is_done(seen, 0, 3)
    assert seen["release"] == {"number": 1, "digest": release.digest}
    assert [each["macro_f1"] for each in seen["devices"]] == [0.873016, 0.873016, None]
    assert {(each["release"], each["digest"]) for each in seen["devices"]} == {(1, KERNELS)}
    json.dumps(seen, allow_nan=False)


def test_a_round_is_told_by_what_came_of_it(registry: Registry) -> None:
    looker = Looker(registry)
    run_round(registry, devices=DEVICES[:2])
    seen = looker.look()
    assert seen["rounds"] == looker.look()["rounds"]
    found = seen["rounds"][0]
    assert set(found) == {"number", "accepted", "refused", "seconds", "bytes_up", "bytes_down"}
    assert (found["number"], found["accepted"]) == (1, 2)
    assert "ada" in text_of(seen)


def test_an_open_round_is_shown_as_it_fills(registry: Registry) -> None:
    opened(registry)
    seen = Looker(registry).look()
    assert seen["open"] == {"number": 1, "asked": 3, "accepted": 0}
    assert seen["rounds"] == []
    assert "round 1: 0 of 3 updates" in text_of(seen)


def test_what_the_service_waits_for_is_shown(registry: Registry) -> None:
    doing = {"phase": "idle", "waiting": "round 1 needs 3 eligible device(s), 0 are"}
    registry.observations.beat(pid=1, version="", started_at_s=0.0, doing=doing)
    assert "round 1 needs 3" in text_of(Looker(registry).look())


def test_the_first_round_waits_for_every_device_and_for_none_for_ever(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LOOK_S", 0.0)
    shown: list[dict[str, Any]] = []

    def show(seen: dict[str, Any]) -> None:
        shown.append(seen)
        serve(registry, DEVICES[(len(shown) - 1) % len(DEVICES)], 0)

    steering = Steering(Wanted(devices=3), Box(Path("/b")), DEVICES, show, lambda: None)
    monkeypatch.setattr(running, "GATHER_S", 0.0)
    steering._gather(Looker(registry))
    assert shown == []
    monkeypatch.setattr(running, "GATHER_S", 60.0)
    steering._gather(Looker(registry))
    assert [sum(each["release"] == 0 for each in seen["devices"]) for seen in shown] == [0, 1, 2, 3]


def test_a_box_that_ends_waits_for_nobody(registry: Registry) -> None:
    steering = Steering(Wanted(), Box(Path("/b")), DEVICES, lambda seen: None, lambda: None)
    steering.leaving.set()
    steering._gather(Looker(registry))
    assert steering.seen is None
