from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import bridge
from clients.agent.simulated import learner_of
from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import catch_up, first_release
from fleet.federate.wire import Payload, decode_update_header, encode_plan
from fleet.har.population import Population
from fleet.peft.core import core
from server.app import task_of
from server.flower import become_task
from server.messages import content_of
from simulations.local import _plan
from tests.simulations.tiny_fleet import RATE, MakeConfig


def ask(kind: str, content: RecordDict, config: Any, partition: int = 0) -> Message:
    become_task()
    message = Message(content, 7, kind, ttl=60, group_id="1")
    context = Context(1, 7, {"partition-id": partition}, RecordDict(), config.for_flower())
    return bridge.app(message, context)


@pytest.fixture
def zero(tiny_base: Base) -> CoreState:
    return CoreState.zero(core.layout(folded_network(tiny_base), tiny_base.frames))


def config_of(reply: Message) -> dict[str, Any]:
    return dict(reply.content.config_records["config"])


def test_a_plan_is_answered_with_one_packed_array_and_a_header(
    make_config: MakeConfig, tiny_base: Base, zero: CoreState, tiny_people: Population
) -> None:
    plan = _plan(tiny_base, task_of(make_config(), tiny_base, core, RATE), zero, 1)
    reply = ask("train", content_of(encode_plan(plan, zero)), make_config(), 2)
    assert set(reply.content) == {"arrays", "config"}
    (packed,) = reply.content.array_records["arrays"].values()
    assert (packed.dtype, packed.shape) == ("float32", (zero.layout.size,))
    header = decode_update_header(config_of(reply))
    assert (header.plan, header.device) == (plan.id, tiny_people.devices[2])


def test_a_plan_of_another_base_is_declined_with_its_code(
    make_config: MakeConfig, tiny_base: Base, zero: CoreState
) -> None:
    plan = _plan(tiny_base, task_of(make_config(), tiny_base, core, RATE), zero, 1)
    other = plan.model_copy(update={"base": "0" * 64})
    reply = ask("train", content_of(encode_plan(other, zero)), make_config())
    config = config_of(reply)
    assert config["declined"] == "wrong-base"
    assert "this device has" in config["detail"]
    assert set(reply.content) == {"config"}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_message_without_a_config_is_declined_as_malformed(
    make_config: MakeConfig, kind: str
) -> None:
    assert config_of(ask(kind, RecordDict(), make_config()))["declined"] == "malformed"


def test_a_plan_in_another_wire_format_tells_which_side_to_upgrade(
    make_config: MakeConfig,
) -> None:
    content = content_of(Payload(np.zeros(1, np.float32), {"format": 99, "plan": ""}))
    config = config_of(ask("train", content, make_config()))
    assert config["declined"] == "wire-format"
    assert "speaks wire format 1" in config["detail"]


def test_an_evaluation_is_answered_with_counts_only(
    make_config: MakeConfig, tiny_base: Base, zero: CoreState
) -> None:
    payload = catch_up(first_release(tiny_base, "core", zero.layout))
    content = content_of(Payload(payload.array, {**payload.config, "method": "core"}))
    reply = ask("evaluate", content, make_config())
    metrics = reply.content.metric_records["metrics"]
    assert set(metrics) == {"num-examples", "confusion"}
    assert sum(metrics["confusion"]) == metrics["num-examples"] > 0  # type: ignore[arg-type]


def test_the_status_names_the_person_of_the_partition(
    make_config: MakeConfig, tiny_people: Population
) -> None:
    for partition, name in enumerate(tiny_people.devices):
        reply = ask("query.status", RecordDict(), make_config(), partition)
        status = DeviceStatus.model_validate(config_of(reply))
        assert status.device == name
        assert status.usable


def test_the_status_of_a_virtual_device_is_that_of_its_learner_but_makes_no_windows(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = make_config(devices=9, windows_per_device=5, class_mix=0.5, variation="gain:10")
    learners = [learner_of(config.for_flower(), partition) for partition in range(9)]
    monkeypatch.setattr("fleet.har.virtual.labelled", None)
    for partition, learner in enumerate(learners):
        reply = ask("query.status", RecordDict(), config, partition)
        status = DeviceStatus.model_validate(config_of(reply))
        assert status == learner.status()
        assert (status.device, status.usable) == (f"device-{partition:05d}", True)
    beyond = config_of(ask("query.status", RecordDict(), config, 9))
    assert (beyond["declined"], "has 9 devices" in beyond["detail"]) == ("no-such-person", True)


def test_a_node_beyond_the_fleet_declines_its_status(make_config: MakeConfig) -> None:
    config = config_of(ask("query.status", RecordDict(), make_config(), 3))
    assert config["declined"] == "no-such-person"


def test_lists_in_a_config_are_left_out_of_what_a_learner_sees() -> None:
    content = RecordDict({"config": ConfigRecord({"a": 1, "b": [1, 2]})})
    assert dict(bridge._payload(content).config) == {"a": 1}


def test_a_simulated_device_serves_no_release_and_tells_its_status(
    make_config: MakeConfig,
) -> None:
    release, status = (
        config_of(ask(kind, RecordDict(), make_config(), 1))
        for kind in ("query.release", "query.status")
    )
    assert release == status


def test_importing_the_bridge_imports_neither_torch_nor_the_links_ends() -> None:
    # Flower imports gRPC itself; here none of the modules that need it may be.
    wanted = "{'torch', 'clients.link.caller', 'clients.link.messages', 'clients.link.service'}"
    code = f"import sys, clients.bridge; sys.exit(bool({wanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
