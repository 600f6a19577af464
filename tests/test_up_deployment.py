"""A fleet in a box as a newcomer starts it: one command, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from fleet.adapt.base import load_base
from server.registry import open_registry
from simulations.box.wanted import Wanted
from simulations.engines import Engine
from simulations.processes import end, processes_of
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.flower_processes import program

pytestmark = [pytest.mark.e2e, pytest.mark.deployment, pytest.mark.timeout(900)]

MARKER = "COREFLEET_TEST_BOX"
DEVICES, ROUNDS, WINDOWS, RATE = 2, 2, 40, 0.1
LIMIT_S = 600.0


def test_a_fleet_in_a_box_ends_in_the_release_of_the_simulation_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    mark = uuid.uuid4().hex
    # Sockets have short paths, and pytest's folders are deep.
    folder = Path("/tmp") / f"box-{mark[:8]}"
    words = ["up", "--devices", str(DEVICES), "--data", "synthetic", "--rounds", str(ROUNDS)]
    words += ["--windows-per-device", str(WINDOWS), "--base-epochs", "3", "--rate", str(RATE)]
    words += ["--folder", str(folder), "--format", "json"]
    try:
        done = subprocess.run(
            [program("fleet"), *words],
            env={**os.environ, MARKER: mark},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        left = processes_of(mark, MARKER)
    finally:
        end(mark, variable=MARKER)
    logs = "\n".join(path.read_text() for path in sorted(folder.glob("log/*.log")))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{logs}"
    assert left == set()
    data = json.loads(done.stdout)["data"]
    assert [each["number"] for each in data["rounds"]] == [1, 2]
    assert {(each["accepted"], each["refused"]) for each in data["rounds"]} == {(DEVICES, 0)}
    assert all(each["bytes_up"] and each["bytes_down"] for each in data["rounds"])
    assert len(data["devices"]) == DEVICES
    assert {each["release"] for each in data["devices"]} == {ROUNDS}
    assert len({each["digest"] for each in data["devices"]}) == 1
    assert all(0 < each["macro_f1"] <= 1 for each in data["devices"])

    wanted = Wanted(DEVICES, "synthetic", ROUNDS, rate=RATE, windows=WINDOWS, base_epochs=3)
    here = wanted.config().model_copy(
        update={"base": str(folder / "base.safetensors"), "out": str(tmp_path / "here")}
    )
    run = Run(here, ("core",), {"core": RATE}, Engine.loop)
    report = simulate(open_run(run, resume=False), Silent())
    with open_registry(folder / "server" / "registry.sqlite", clock=lambda: 0.0) as registry:
        assert [each.digest for each in registry.bases.all()] == [
            load_base(folder / "base.safetensors").digest
        ]
        assert registry.audit.verify().seq > 0
    assert data["release"] == report["release"]
