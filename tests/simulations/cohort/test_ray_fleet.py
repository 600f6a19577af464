from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.errors import MismatchError
from fleet.federate.wire import Payload, decode_plan, encode_plan, encode_state
from fleet.peft.registry import find
from server.app import task_of
from simulations.cohort import ray_fleet
from simulations.cohort.batched import BatchedFleet
from simulations.cohort.fleet import EngineLost
from simulations.cohort.ray_cluster import ADDRESS_ENVIRONMENT
from simulations.cohort.ray_fleet import RayFleet
from simulations.cohort.ray_team import START_TIMEOUT_S, Team
from simulations.cohort.ray_worker import Setting, setting_of
from simulations.engines import Engine
from simulations.local import _plan
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.simulations.cohort.ray_clusters import (
    LoopbackCluster,
    loopback_cluster,
    marked,
    wait_until_gone,
)
from tests.simulations.tiny_fleet import RATE, MakeConfig

# Ray leaves files of its subprocesses open, and subprocesses that it does not wait for.
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DEVICES = 14
PARTITIONS = [5, 0, 13, 2, 7, 1, 12, 3, 4, 6, 8, 9, 11, 10]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LoopbackCluster]:
    with loopback_cluster() as found:
        yield found


def plan_message(base: Base, make_config: MakeConfig, method: str, epochs: int = 1) -> Payload:
    task = task_of(make_config(epochs=epochs), base, find(method), RATE)
    state = CoreState.zero(task.layout)
    return encode_plan(_plan(base, task, state, 1), state)


def assert_same(found: list[Payload | Exception], expected: list[Payload | Exception]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Payload)
        assert isinstance(other, Payload)
        assert one.array.tobytes() == other.array.tobytes()
        assert dict(one.config) == dict(other.config)


def test_two_nodes_answer_as_the_threads_of_one_bit_for_bit(
    tiny_base: Base, make_config: MakeConfig, cluster: LoopbackCluster
) -> None:
    values = make_config(devices=DEVICES).for_flower()
    here = BatchedFleet(values, 2)
    with contextlib.closing(RayFleet(values, cluster.address)) as there:
        train_until_both_take_part(there, plan_message(tiny_base, make_config, "core"))
        for method in ("core", "full"):
            message = plan_message(tiny_base, make_config, method)
            expected = here.train(message, PARTITIONS)
            assert_same(there.train(message, PARTITIONS), expected)
        task = task_of(make_config(), tiny_base, find("core"), RATE)
        identity = {"base": tiny_base.digest, "method": "core"}
        state = encode_state(CoreState.zero(task.layout), identity)
        pairs = zip(
            there.evaluate(state, PARTITIONS), here.evaluate(state, PARTITIONS), strict=True
        )
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]
        assert len(there.nodes()) == 2, "one worker per CPU, so one on each node"
        # Errors are a device's own, or everybody's, as they are on one machine.
        message = plan_message(tiny_base, make_config, "core")
        first, absent = there.train(message, [0, DEVICES])
        assert isinstance(first, Payload)
        assert isinstance(absent, MismatchError)
        assert absent.code == "no-such-person"
        plan = decode_plan(message).model_copy(update={"base": "f" * 64})
        with pytest.raises(MismatchError, match="the message is for base"):
            there.train(encode_plan(plan, CoreState.zero(task.layout)), [0, 1])
        assert_same(there.train(message, PARTITIONS), here.train(message, PARTITIONS))
    assert not ray.is_initialized()


def test_a_node_that_is_killed_midway_changes_no_bit(
    tiny_base: Base,
    make_config: MakeConfig,
    cluster: LoopbackCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = make_config(devices=DEVICES).for_flower()
    message = plan_message(tiny_base, make_config, "core", epochs=8)
    expected = BatchedFleet(values, 2).train(message, PARTITIONS)
    lost: list[str] = []
    heard, lose = Team._heard, Team._lost

    def kill_then_hear(team: Team, call: Any, duty: Any, told: Any) -> None:
        heard(team, call, duty, told)
        if duty.chunk is not None and not lost:
            lost.append("killed")
            cluster.kill_second()

    def note_loss(team: Team, call: Any, duty: Any, reason: str) -> None:
        lost.append(f"chunk {duty.chunk}: {reason}")
        lose(team, call, duty, reason)

    with contextlib.closing(RayFleet(values, cluster.address)) as fleet:
        train_until_both_take_part(fleet, message)
        monkeypatch.setattr(Team, "_heard", kill_then_hear)
        monkeypatch.setattr(Team, "_lost", note_loss)
        deadline = time.monotonic() + START_TIMEOUT_S
        # A worker may live on for a second after its node.
        while not any(text.startswith("chunk ") for text in lost):
            assert time.monotonic() < deadline, f"no chunk was ever lost: {lost}"
            assert_same(fleet.train(message, PARTITIONS), expected)
        assert_same(fleet.train(message, PARTITIONS), expected)


@pytest.mark.faults
def test_a_base_travels_where_no_node_has_its_file_but_data_does_not(
    tiny_base: Base,
    make_config: MakeConfig,
    cluster: LoopbackCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = make_config(devices=DEVICES).for_flower()
    message = plan_message(tiny_base, make_config, "core")
    setting, base = setting_of(values)

    def elsewhere(**changes: str) -> Callable[[object], tuple[Setting, bytes]]:
        other = replace(setting, run_config={**setting.run_config, **changes})
        return lambda _: (other, base)

    monkeypatch.setattr(ray_fleet, "setting_of", elsewhere(base="/nowhere/base.safetensors"))
    with contextlib.closing(RayFleet(values, cluster.address)) as fleet:
        expected = BatchedFleet(values, 1).train(message, PARTITIONS)
        assert_same(fleet.train(message, PARTITIONS), expected)
    monkeypatch.setattr(ray_fleet, "setting_of", elsewhere(data="/nowhere/tiny-away.npz"))
    with contextlib.closing(RayFleet(values, cluster.address)) as fleet:
        wanted = r"node [\d.]+: there is neither /nowhere/tiny-away.npz nor .* in FLEET_DATA"
        with pytest.raises(EngineLost, match=wanted) as caught:
            fleet.train(message, PARTITIONS)
        assert caught.value.code == "data-missing"


# Two nodes that answer bit for bit are what the default suite has of this.
@pytest.mark.faults
def test_a_run_on_a_cluster_of_its_own_ends_in_the_digest_of_the_cohort_engine(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Devices come and go by a trace, which both engines follow alike.
    changes: dict[str, Any] = {"devices": 7, "windows_per_device": 9, "trace": "churning"}
    monkeypatch.delenv(ADDRESS_ENVIRONMENT, raising=False)
    with marked() as marker:
        releases = {}
        for engine in (Engine.cohort, Engine.ray_cohort):
            config = make_config(out=str(tmp_path / engine.value), wait_s=1e6, **changes)
            run = Run(config, ("core",), {}, engine, workers=2)
            report = simulate(open_run(run, resume=False), Silent())
            releases[engine] = report["methods"]["core"]["release"]
        wait_until_gone(marker)
    assert releases[Engine.cohort]["number"] == 2
    assert releases[Engine.ray_cohort] == releases[Engine.cohort]
    assert not ray.is_initialized()


def train_until_both_take_part(fleet: RayFleet, message: Payload) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(fleet.nodes()) < 2:
        assert time.monotonic() < deadline, "the second node's worker never started"
        fleet.train(message, PARTITIONS[:4])
