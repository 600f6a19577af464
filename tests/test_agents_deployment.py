"""Four devices as an embedded engineer sets them up: own recordings, own agents, TLS, node keys.

Each takes its people's samples in through ``fleet-device ingest``, is kept running by
``fleet-device run``, and takes part in a run of a real SuperLink. The windows are those of the
simulation, to the bit, so the release must be too.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clients.agent.config import load_config, save_config
from fleet.config import RunConfig
from fleet.errors import FleetError
from fleet.federate.releases import load_release
from fleet.har import sources
from fleet.har.population import population_of
from fleet.har.virtual import VirtualFleet, virtual_fleet
from server.store import RunFolder
from simulations.engines import Engine
from simulations.progress import Silent
from simulations.recordings import write_recordings
from simulations.simulate import Run, open_run, simulate
from tests.flower_deployment import FlowerDeployment, flower_deployment
from tests.flower_processes import Setting, program
from tests.simulations.tiny_fleet import MakeConfig, make_config, tiny_base_file, tiny_data

__all__ = ["make_config", "tiny_base_file", "tiny_data"]

pytestmark = [pytest.mark.e2e, pytest.mark.deployment, pytest.mark.timeout(1500)]

APP = Path(__file__).resolve().parents[1]
DEVICES, ROUNDS = 4, 5
COMMAND_TIMEOUT_S = 120.0
# Forty-four ClientApps start one after the other on two cores.
RUN_TIMEOUT_S = 1200.0
END_TIMEOUT_S = 90.0


def fleet_device(*words: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command of the device and return its data."""
    done = subprocess.run(
        [program("fleet-device"), *words, "--format", "json"],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


def set_up(
    deployment: FlowerDeployment, fleet: VirtualFleet, number: int, base: Path, folder: Path
) -> Path:
    """Make one device: state directory, base, its person's samples and labels, enrolment."""
    name, state, with_env = fleet.name(number), folder / f"d{number}", deployment.environment
    place = ["--state", str(state)]
    fleet_device("init", "--name", name, "--base", str(base), *place, environment=with_env)
    files = write_recordings(fleet, number, folder / f"recordings-{number}")
    mine = ["--person", name, *place]
    for side, path in (("train", files.train), ("held-out", files.held_out)):
        fleet_device("ingest", str(path), "--split", side, *mine, environment=with_env)
    fleet_device("label", "--file", str(files.labels), *mine, environment=with_env)
    save_config(deployment.enroll(state, load_config(state)), state)
    return state


def start(deployment: FlowerDeployment, state: Path) -> subprocess.Popen[bytes]:
    command = [program("fleet-device"), "run", "--state", str(state), "--format", "json"]
    return deployment.start(f"device-{state.name}", command)


def config_of(make_config: MakeConfig, folder: Path) -> RunConfig:
    """Return a run on HAPT where it is found, else on the synthetic fleet."""
    changes: dict[str, Any] = {"rounds": ROUNDS, "devices": DEVICES, "evaluate_every": ROUNDS}
    try:
        sources.find("hapt")
    except FleetError:
        return make_config(**changes)
    whole = {"data": "hapt", "base": "", "base_epochs": 4, "windows_per_device": 60}
    return make_config(**changes, **whole, learning_rate=0.1, out=str(folder))


def test_four_devices_end_in_the_release_of_the_simulation_and_all_serve_it(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = config_of(make_config, tmp_path / "here").model_copy(
        update={"out": str(tmp_path / "here")}
    )
    run = Run(config, ("core",), {"core": config.learning_rate}, Engine.loop)
    report = simulate(open_run(run, resume=False), Silent())
    base, out = tmp_path / "here" / "base.safetensors", tmp_path / "there"
    run_config: dict[str, Setting] = {
        **config.for_flower(),
        "base": str(base),
        "out": str(out),
        "min-devices": DEVICES,
    }
    fleet = virtual_fleet(config, population_of(config))
    with flower_deployment({"OMP_NUM_THREADS": "1"}) as deployment:
        # Sockets have short paths, and pytest's folders are deep.
        folder = deployment.folder
        with ThreadPoolExecutor(2) as pool:
            made = [
                pool.submit(set_up, deployment, fleet, number, base, folder)
                for number in range(DEVICES)
            ]
            states = [each.result() for each in made]
        devices = [start(deployment, state) for state in states]
        log = deployment.flwr_run(APP, run_config, RUN_TIMEOUT_S)
        assert [each.poll() for each in devices] == [None] * DEVICES, deployment.logs()
        serving = RunFolder(out / "core").serving(ROUNDS)
        served = [
            fleet_device("status", "--state", str(state), environment=deployment.environment)
            for state in states
        ]
        for each in devices:
            each.send_signal(signal.SIGTERM)
        assert [each.wait(END_TIMEOUT_S) for each in devices] == [0] * DEVICES, deployment.logs()
        logs = deployment.logs()
    assert not deployment.processes()
    last = out / "core" / "releases" / f"{ROUNDS:06d}.safetensors"
    assert last.is_file(), f"{log}\n{logs}"
    release = load_release(last)
    assert {"number": release.number, "digest": release.digest} == report["release"]
    there, here = (RunFolder(place / "core").evaluations() for place in (out, tmp_path / "here"))
    assert [each["devices"] for each in there] == [each["devices"] for each in here]
    scores = [each["macro_f1"] for each in there]
    assert scores[-1] > scores[0], scores
    assert serving is not None
    digests = {each["serves"] for each in serving["devices"].values()}
    assert len(digests) == 1, serving
    assert {each["served"]["digest"] for each in served} == digests
    assert {each["served"]["number"] for each in served} == {ROUNDS}
