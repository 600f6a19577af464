"""What serving loads: the machine's torch, and nothing of Flower, server or simulations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
PACKAGE = ROOT / "clients" / "agent" / "serving"


def loaded_by(*modules: str) -> set[str]:
    script = f"import json, sys, {', '.join(modules)}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_serving_loads_no_flower_and_no_server() -> None:
    modules = [f"clients.agent.serving.{path.stem}" for path in PACKAGE.glob("[a-z]*.py")]
    assert len(modules) > 10
    loaded = loaded_by(*modules, "clients.agent.cli.model")
    assert "torch" in loaded
    unwanted = {"flwr", "grpc", "ray", "server", "simulations", "sqlalchemy", "onnx", "sklearn"}
    assert loaded & unwanted == set()


def test_the_commands_help_loads_no_torch() -> None:
    assert "torch" not in loaded_by("clients.agent.cli.model", "clients.agent.serving.samples")
