from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.stub_wheels import TORCH, unpack_torch, write_half, write_wheel

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "install-device.sh"
# Outside of the environment that runs the tests: it has a torch and Flower of its own.
SYSTEM = str(Path(getattr(sys, "_base_executable", sys.executable)))
LIMIT_S = 120.0


def run(
    *words: str | Path, torch: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    given = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    given |= {"PYTHONPATH": str(torch)} if torch else {}
    return subprocess.run(
        [str(SCRIPT), *map(str, words)],
        env={**given, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


def agent(
    tmp_path: Path, wheels: Path, torch: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    into = tmp_path / "agent"
    words = ("--extras", "agent", "--python", SYSTEM, "--into", into, "--wheels", wheels)
    return run(*words, torch=torch, env=env)


@pytest.fixture
def torch(tmp_path: Path) -> Path:
    return unpack_torch(tmp_path / "system")


def test_the_agent_comes_beside_the_systems_torch_without_importing_it(
    tmp_path: Path, torch: Path
) -> None:
    done = agent(tmp_path, write_half(tmp_path / "wheels", "agent"), torch)
    assert done.returncode == 0, done.stderr
    assert f"keeps torch {TORCH} {torch / 'torch' / '__init__.py'}" in done.stdout
    (own,) = (tmp_path / "agent").glob("lib/python3*/site-packages")
    assert (own / "clients" / "agent" / "store" / "store.py").is_file()
    assert (own / "stub.py").is_file()
    assert list(own.glob("torch*")) == []


def test_a_dependency_that_wants_another_torch_is_refused(tmp_path: Path, torch: Path) -> None:
    wheels = write_half(tmp_path / "wheels", "agent", requires=["torch>=9"])
    write_wheel(wheels, "torch", "9.0", {"torch/__init__.py": ""})
    done = agent(tmp_path, wheels, torch)
    assert done.returncode == 1
    assert "pip could not install corefleet[device-agent]" in done.stderr
    assert list((tmp_path / "agent").glob("lib/python3*/site-packages/torch*")) == []


def test_a_torch_that_is_not_the_one_before_is_an_error(tmp_path: Path, torch: Path) -> None:
    """A package may bring files named torch without saying so; what is found afterwards counts."""
    wheels = write_half(
        tmp_path / "wheels",
        "agent",
        files={"clients/agent/store/store.py": "", "shadow.pth": "import shadow\n"},
    )
    write_wheel(
        wheels,
        "stub",
        "1.0",
        {"shadow.py": "import sys; sys.path.insert(0, __file__[:-3])", "shadow/torch.py": ""},
    )
    done = agent(tmp_path, wheels, torch)
    assert done.returncode == 1
    assert "torch was changed" in done.stderr


def test_numpy_stays_of_its_generation_and_the_pins_of_an_image_do_not_bind_its_own_environment(
    tmp_path: Path, torch: Path
) -> None:
    pins = tmp_path / "constraint.txt"
    pins.write_text("stub==0.5\n")
    about = torch / "numpy-1.21.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.21.5\n")
    wheels = write_half(tmp_path / "wheels", "agent", requires=["numpy>=1.26"])
    write_wheel(wheels, "numpy", "1.26.4", {"numpy/__init__.py": ""})
    write_wheel(wheels, "numpy", "2.2.6", {"numpy/__init__.py": ""})
    done = agent(tmp_path, wheels, torch, {"PIP_CONSTRAINT": str(pins)})
    assert done.returncode == 0, done.stderr
    (own,) = (tmp_path / "agent").glob("lib/python3*/site-packages")
    assert [path.name for path in own.glob("numpy-*")] == ["numpy-1.26.4.dist-info"]


def test_an_agent_without_a_torch_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = agent(tmp_path, write_half(tmp_path / "wheels", "agent"), empty)
    assert done.returncode == 1
    assert "has no torch, and none is installed for it" in done.stderr
    assert not (tmp_path / "agent").exists()


def test_a_second_environment_on_top_of_one_is_refused(tmp_path: Path, torch: Path) -> None:
    subprocess.run([SYSTEM, "-m", "venv", "--without-pip", tmp_path / "first"], check=True)
    words = ("--extras", "agent", "--python", tmp_path / "first" / "bin" / "python")
    done = run(*words, "--into", tmp_path / "second", torch=torch)
    assert done.returncode == 1
    assert "belongs to a virtual environment" in done.stderr
    assert "Leave --into out" in done.stderr


def test_the_bridge_keeps_out_of_a_systems_own_packages(tmp_path: Path) -> None:
    done = run("--extras", "bridge", "--python", SYSTEM)
    assert done.returncode == 1
    assert "environment of its own" in done.stderr


@pytest.mark.parametrize(("half", "wanted"), [("agent", "3.10"), ("bridge", "3.11")])
def test_a_python_that_is_too_old_is_named(tmp_path: Path, half: str, wanted: str) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10 || exit 1\n')
    old.chmod(0o755)
    done = run("--extras", half, "--python", old)
    assert done.returncode == 1
    assert f"Python 3.8.10 is too old for the {half}, which needs {wanted}" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--extras is agent or bridge, not ''"),
        (("--extras", "server"), "--extras is agent or bridge, not 'server'"),
        (("--extras",), "--extras needs a value"),
        (("--force",), "there is no option --force"),
        (("--extras", "agent", "--python", "no-such"), "there is no interpreter no-such"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_folder_without_our_wheel_or_with_two_is_refused(tmp_path: Path, torch: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    none = agent(tmp_path, wheels, torch)
    write_half(wheels, "agent")
    write_wheel(wheels, "corefleet", "0.2.0", {})
    two = agent(tmp_path, wheels, torch)
    assert (none.returncode, two.returncode) == (1, 1)
    assert "has no wheel of corefleet" in none.stderr
    assert "has 2 wheels of corefleet" in two.stderr


@pytest.mark.parametrize("name", ["install-device.sh", "bundle-wheels.sh"])
def test_the_scripts_parse_and_explain_themselves(name: str) -> None:
    path = ROOT / "scripts" / name
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run([path, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {name} ")
