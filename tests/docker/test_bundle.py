"""The real wheels in clean environments; some minutes, so `make test-install` runs it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.stub_wheels import unpack_torch

ROOT = Path(__file__).parents[2]
# Both halves on the interpreter that is here: its version is that of a bridge.
SYSTEM = str(Path(getattr(sys, "_base_executable", sys.executable)))
LIMIT_S = 900.0

pytestmark = [pytest.mark.install, pytest.mark.timeout(LIMIT_S)]


def run(*words: str | Path, torch: Path | None = None) -> str:
    given = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    given |= {"PYTHONPATH": str(torch)} if torch else {}
    command = [str(word) for word in words]
    done = subprocess.run(
        command, env=given, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "device"
    script = ROOT / "scripts" / "bundle-wheels.sh"
    pythons = ("--agent-python", SYSTEM, "--bridge-python", SYSTEM)
    run(script, "--arch", platform.machine(), *pythons, "--out", out)
    return out


def test_a_bundle_is_whole_and_brings_no_torch(bundle: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)
    names = {
        path.name.split("-")[0] for half in ("agent", "bridge") for path in bundle.glob(f"{half}/*")
    }
    assert {"corefleet", "flwr", "numpy", "typer"} <= names
    assert not {name for name in names if "torch" in name or "nvidia" in name}
    assert not list(bundle.glob("agent/flwr-*"))


def test_the_agent_is_installed_from_it_beside_a_torch(bundle: Path, tmp_path: Path) -> None:
    torch = unpack_torch(tmp_path / "system")
    script, into = bundle / "scripts" / "install-device.sh", tmp_path / "agent"
    words = ("--python", SYSTEM, "--into", into, "--wheels", bundle / "agent")
    assert "keeps torch" in run(script, "--extras", "agent", *words, torch=torch)
    run(into / "bin" / "fleet-device", "--help", torch=torch)
    state = ("--state", tmp_path / "state", "--format", "json")
    run(into / "bin" / "fleet-device", "init", "--name", "d", *state, torch=torch)
    assert '"d"' in run(into / "bin" / "fleet-device", "status", *state, torch=torch)
    absent = "import importlib.util as u, sys; sys.exit(u.find_spec('flwr') is not None)"
    run(into / "bin" / "python", "-c", absent, torch=torch)


def test_the_bridge_is_installed_from_it_without_a_torch(bundle: Path, tmp_path: Path) -> None:
    script, into = bundle / "scripts" / "install-device.sh", tmp_path / "bridge"
    words = ("--python", SYSTEM, "--into", into, "--wheels", bundle / "bridge")
    assert "and no torch" in run(script, "--extras", "bridge", *words)
    run(into / "bin" / "flower-supernode", "--help")
    absent = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)"
    run(into / "bin" / "python", "-c", absent)
