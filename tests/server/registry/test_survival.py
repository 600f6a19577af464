from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
KILLED = "tests.server.registry.killed"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.faults)])
def test_a_coordinator_that_is_killed_at_a_statement_loses_and_doubles_nothing(
    memory: Path, step: int
) -> None:
    folder = memory / f"killed-{step}"
    folder.mkdir()
    outcome = json.loads(run("-m", KILLED, "working", str(folder), str(step)))
    assert set(outcome["ends"][:-1]) == {-signal.SIGKILL}
    assert len(outcome["ends"]) > 60 // step
    assert outcome["acknowledged"][-1] == "revoked"


@pytest.mark.parametrize("step", [24, pytest.param(1, marks=pytest.mark.faults)])
def test_a_registry_whose_making_is_killed_is_made_the_next_time(memory: Path, step: int) -> None:
    folder = memory / f"made-{step}"
    folder.mkdir()
    outcome = json.loads(run("-m", KILLED, "making", str(folder), str(step)))
    assert set(outcome["ends"][:-1]) == {-signal.SIGKILL}
    assert len(outcome["ends"]) > 30 // step


def test_a_registry_loads_no_torch_and_no_flower() -> None:
    loaded = json.loads(
        run(
            "-c",
            "import json, sys, server.registry, server.registry.growth;"
            "print(json.dumps(sorted(sys.modules)))",
        )
    )
    assert "server.registry.rounds" in loaded
    assert {name.split(".")[0] for name in loaded} & {"torch", "flwr", "grpc", "scipy"} == set()
