"""A real deployment whose ServerApp is killed while a round is open, and started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients.agent.config import PUBLIC_KEY, DeviceConfig
from clients.agent.service import supernode_command
from fleet.adapt.base import Base
from server.registry import Registry, open_registry
from server.standing.policy import FleetPolicy
from tests.flower_deployment import FlowerDeployment, flower_deployment, with_node_config
from tests.flower_processes import CONNECTION, words_of
from tests.server.registry.filled import OPERATOR
from tests.server.running import Setting
from tests.simulations.tiny_fleet import RATE, MakeConfig

pytestmark = [pytest.mark.e2e, pytest.mark.deployment, pytest.mark.timeout(900)]

APP = Path(__file__).resolve().parents[3]
ROUNDS = 2
# A ClientApp starts for each message, which takes many seconds where others use the machine too.
ROUND_TIMEOUT_S = 300.0
START_TIMEOUT_S = 120.0
LOOK_S = 0.1


def start_devices(deployment: FlowerDeployment, registry: Registry, names: list[str]) -> None:
    """Enroll devices by real keys and start their SuperNodes, with learners that simulate."""

    def start(number: int) -> None:
        state = deployment.folder / f"d{number}"
        config = deployment.enroll(state, DeviceConfig(name=names[number]))
        line = (state / PUBLIC_KEY).read_text()
        registry.devices.enroll(names[number], line, actor=OPERATOR)
        own = f"partition-id={number} num-partitions={len(names)}"
        command = with_node_config(supernode_command(config, state), own)
        deployment.start_supernode(state, config, command)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(start, range(len(names))))


def server_apps(deployment: FlowerDeployment) -> list[int]:
    """Return the pids of the run's ServerApps."""
    found = []
    for pid in deployment.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"flwr-serverapp") for word in words):
            found.append(pid)
    return found


def until(true: Callable[[], bool], limit_s: float, deployment: FlowerDeployment) -> None:
    """Look until something is so."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, deployment.logs()[-8000:]
        time.sleep(LOOK_S)


def one_of_three_answered(registry: Registry) -> bool:
    found = registry.open_round()
    return found is not None and len(found.updates) >= 1


def test_a_server_app_that_is_killed_in_a_round_loses_no_update_and_doubles_none(
    make_config: MakeConfig, setting: Setting, tiny_base: Base, tiny_base_file: Path
) -> None:
    wanted = setting.run(setting.grid(), rounds=ROUNDS).releases
    names = list(setting.people.devices)
    with flower_deployment({"OMP_NUM_THREADS": "1"}) as deployment:
        place = deployment.folder / "registry.sqlite"
        with open_registry(place, clock=time.time) as registry:
            start_devices(deployment, registry, names)
            registry.bases.install(tiny_base.digest, tiny_base_file, actor=OPERATOR)
            policy = FleetPolicy(
                base=tiny_base.digest,
                rank=2,
                learning_rate=RATE,
                batch=16,
                minimum=3,
                quorum=3,
                every_s=0.5,
                rounds=ROUNDS,
            )
            registry.policy.set(policy, actor=OPERATOR)
            config = {**make_config().for_flower(), "registry": str(place)}
            run = ["run", str(APP), CONNECTION, *words_of(config)]
            deployment.flwr(run, START_TIMEOUT_S)
            until(lambda: one_of_three_answered(registry), ROUND_TIMEOUT_S, deployment)
            plan = registry.rounds.get(1).plan.id
            (victim,) = server_apps(deployment)
            os.kill(victim, signal.SIGKILL)
            deployment.flwr(run, START_TIMEOUT_S)
            until(lambda: len(registry.releases.all()) > ROUNDS, 2 * ROUND_TIMEOUT_S, deployment)
            digests = [row.digest for row in registry.releases.all()]
            rounds = registry.rounds.all()
            verbs = [row.verb for row in registry.audit.rows()]
            registry.audit.verify()
    assert not deployment.processes()
    assert digests[1:] == [release.digest for release in wanted]
    assert [row.attempt for row in rounds] == [1] * ROUNDS
    assert rounds[0].plan.id == plan
    assert verbs.count("update.accept") == ROUNDS * len(names)
    assert verbs.count("round.open") == verbs.count("round.release") == ROUNDS
