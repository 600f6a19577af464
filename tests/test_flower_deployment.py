"""Our app in a real deployment: TLS, node keys, one process for each message."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients.agent.config import DeviceConfig
from clients.agent.service import supernode_command
from fleet.federate.releases import load_release
from server.store import RunFolder
from simulations.engines import Engine
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.flower_deployment import FlowerDeployment, flower_deployment, with_node_config
from tests.flower_processes import Setting
from tests.simulations.tiny_fleet import (
    MakeConfig,
    make_config,
    tiny_base_file,
    tiny_data,
)

__all__ = ["make_config", "tiny_base_file", "tiny_data"]

pytestmark = [pytest.mark.e2e, pytest.mark.deployment, pytest.mark.timeout(600)]

APP = Path(__file__).resolve().parents[1]
DEVICES, ROUNDS = 2, 2
# Ten processes start for as many messages, which takes minutes where others use the machine too.
RUN_TIMEOUT_S = 480.0


def start_devices(deployment: FlowerDeployment, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start SuperNodes whose learners live in the ClientApp's process."""

    def start(number: int) -> subprocess.Popen[bytes]:
        state = folder / f"state-{number}"
        config = deployment.enroll(state, DeviceConfig(name=f"node-{number}"))
        own = f"partition-id={number} num-partitions={DEVICES}"
        command = with_node_config(supernode_command(config, state), own)
        return deployment.start_supernode(state, config, command)

    with ThreadPoolExecutor(DEVICES) as pool:
        return list(pool.map(start, range(DEVICES)))


def test_a_deployment_with_tls_and_node_keys_ends_in_the_release_of_the_simulation(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        rounds=ROUNDS, devices=DEVICES, evaluate_every=ROUNDS, out=str(tmp_path / "here")
    )
    run = Run(config, ("core",), {"core": config.learning_rate}, Engine.loop)
    report = simulate(open_run(run, resume=False), Silent())
    out = tmp_path / "there"
    run_config: dict[str, Setting] = {**config.for_flower(), "out": str(out)}
    with flower_deployment({"OMP_NUM_THREADS": "1"}) as deployment:
        nodes = start_devices(deployment, tmp_path)
        log = deployment.flwr_run(APP, run_config, RUN_TIMEOUT_S)
        assert [node.poll() for node in nodes] == [None] * DEVICES, deployment.logs()
        logs = deployment.logs()
    assert not deployment.processes()
    last = out / "core" / "releases" / f"{ROUNDS:06d}.safetensors"
    assert last.is_file(), f"{log}\n{logs}"
    release = load_release(last)
    assert {"number": release.number, "digest": release.digest} == report["release"]
    there, here = (RunFolder(folder / "core").evaluations() for folder in (out, tmp_path / "here"))
    assert [each["devices"] for each in there] == [each["devices"] for each in here]
