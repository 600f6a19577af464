"""Real Flower processes on loopback for tests, and the certainty that none outlives its test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.flower import QUIET_ENVIRONMENT
from simulations.processes import end, is_alive, processes_of

__all__ = ["FlowerSimulation", "Setting", "flower_simulation", "is_alive"]

MARKER = "COREFLEET_TEST_RUN"
CONNECTION = "test"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0

Setting = bool | int | float | str


@dataclass(frozen=True)
class FlowerSimulation:
    """A SuperLink of our own in simulation mode.

    Args:
        folder: Holds Flower's home, Ray's sessions and the SuperLink's log.
        environment: Environment that every process of it has.
    """

    folder: Path
    environment: Mapping[str, str]

    @property
    def log_path(self) -> Path:
        """File with all that the SuperLink and its children printed."""
        return self.folder / "superlink.log"

    def processes(self) -> set[int]:
        """Return the pids of all its live processes."""
        return processes_of(self.environment[MARKER], MARKER)

    def flwr_run(
        self,
        app_dir: Path,
        run_config: Mapping[str, Setting] | Path,
        num_supernodes: int,
        timeout_s: float,
    ) -> str:
        """Run the app in ``app_dir`` to its end and return what ``flwr run`` printed.

        ``flwr run`` succeeds even when every device failed: judge by what the run wrote.

        Args:
            app_dir: Folder with the app's ``pyproject.toml``.
            run_config: Overrides of keys that the app declares, or a TOML file of them; Flower
                does not take both.
            num_supernodes: Number of virtual devices.
            timeout_s: Deadline of the whole command.
        """
        command = [_program("flwr"), "run", str(app_dir), CONNECTION, "--stream"]
        # One worker process: each more takes seconds to start and the devices here are tiny.
        resources = "client-resources-num-cpus=1 init-args-num-cpus=1"
        command += ["--federation-config", f"num-supernodes={num_supernodes} {resources}"]
        command += ["--run-config", _run_config(run_config)] if run_config else []
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"flwr run ended with {done.returncode}:\n{done.stdout}")
        return done.stdout


@contextlib.contextmanager
def flower_simulation(
    environment: Mapping[str, str] | None = None, *, cwd: Path | None = None
) -> Iterator[FlowerSimulation]:
    """Start a SuperLink in simulation mode, and end it with every process it started.

    Args:
        environment: Added to the environment of all its processes.
        cwd: Working directory of the SuperLink; a fresh folder if not given.
    """
    # Ray's sockets lie under this folder and a socket's path is at most 107 bytes long, which
    # pytest's own folders leave no room for.
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    run_name, port = uuid.uuid4().hex, _free_port()
    simulation = FlowerSimulation(folder, _environment(folder, run_name, environment or {}))
    _write_connection(folder, port)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        superlink = _start_superlink(simulation, port, cwd or folder)
        stack.callback(superlink.wait, END_TIMEOUT_S)
        stack.callback(end, run_name, variable=MARKER)
        _wait_until_healthy(simulation, port, superlink)
        yield simulation


def _environment(folder: Path, run_name: str, added: Mapping[str, str]) -> dict[str, str]:
    # Flower starts its children by their bare names.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        **QUIET_ENVIRONMENT,
        "PATH": path,
        "FLWR_HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        MARKER: run_name,
        **added,
    }


def _write_connection(folder: Path, port: int) -> None:
    lines = ["[superlink]", f'default = "{CONNECTION}"', f"[superlink.{CONNECTION}]"]
    lines += [f'address = "127.0.0.1:{port}"', "insecure = true"]
    (folder / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _run_config(run_config: Mapping[str, Setting] | Path) -> str:
    if isinstance(run_config, Path):
        return str(run_config)
    return " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())


def _start_superlink(simulation: FlowerSimulation, port: int, cwd: Path) -> subprocess.Popen[bytes]:
    command = [_program("flower-superlink"), "--insecure", "--simulation"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with simulation.log_path.open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(simulation.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait_until_healthy(
    simulation: FlowerSimulation, port: int, process: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _is_healthy(port):
        # Waiting for an end that should not come is what paces the attempts.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        if process.returncode is not None or time.monotonic() > deadline:
            text = simulation.log_path.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the SuperLink did not start in {START_TIMEOUT_S:g} s:\n{text}")


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)
