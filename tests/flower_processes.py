"""Real Flower processes on loopback for tests, and the certainty that none outlives its test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.flower import QUIET_ENVIRONMENT
from simulations.processes import end, is_alive, processes_of

__all__ = [
    "CONNECTION",
    "FlowerProcesses",
    "FlowerSimulation",
    "Setting",
    "flower_simulation",
    "free_port",
    "fresh_setting",
    "is_alive",
    "over_at_last",
    "program",
    "run_words",
    "wait_until_healthy",
    "words_of",
    "write_connection",
]

MARKER = "COREFLEET_TEST_RUN"
CONNECTION = "test"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0

Setting = bool | int | float | str


@dataclass(frozen=True)
class FlowerProcesses:
    """Processes of Flower, all with one mark, one folder and one home of their own.

    Args:
        folder: Holds Flower's home, Ray's sessions and what each process printed.
        environment: Environment that every process has.
        children: Those that were started here; what they start themselves is found by the mark.
    """

    folder: Path
    environment: Mapping[str, str]
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def log_path(self) -> Path:
        """File with all that the SuperLink and its children printed."""
        return self.folder / "superlink.log"

    def processes(self) -> set[int]:
        """Return the pids of all live processes."""
        return processes_of(self.environment[MARKER], MARKER)

    def logs(self) -> str:
        """Return what all processes printed, one after the other."""
        texts = [
            f"--- {path.name}\n{path.read_text(encoding='utf-8', errors='replace')}"
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(texts)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process that runs until the end of all; it prints into ``NAME.log``.

        Args:
            name: Of the log.
            command: Program and arguments.
            cwd: Working directory; the folder if not given.
            environment: Added to the environment of all.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=cwd or self.folder,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.children.append(process)
        return process

    def flwr(self, words: Sequence[str], timeout_s: float) -> str:
        """Run a command of ``flwr`` to its end and return what it printed.

        Args:
            words: What follows ``flwr``.
            timeout_s: Deadline of the whole command.
        """
        try:
            done = subprocess.run(
                [program("flwr"), *words],
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            printed = f"{error.output!s}\n{self.logs()}"
            raise RuntimeError(f"flwr {words[0]} took {timeout_s:g} s:\n{printed}") from error
        if done.returncode:
            raise RuntimeError(f"flwr {words[0]} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout


@dataclass(frozen=True)
class FlowerSimulation(FlowerProcesses):
    """A SuperLink of our own in simulation mode."""

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
        # One worker process: each more takes seconds to start and the devices here are tiny.
        resources = "client-resources-num-cpus=1 init-args-num-cpus=1"
        federation = ["--federation-config", f"num-supernodes={num_supernodes} {resources}"]
        return self.flwr([*run_words(app_dir), *federation, *words_of(run_config)], timeout_s)


@contextlib.contextmanager
def flower_simulation(
    environment: Mapping[str, str] | None = None, *, cwd: Path | None = None
) -> Iterator[FlowerSimulation]:
    """Start a SuperLink in simulation mode, and end it with every process it started.

    Args:
        environment: Added to the environment of all its processes.
        cwd: Working directory of the SuperLink; a fresh folder if not given.
    """
    simulation = FlowerSimulation(*fresh_setting(environment or {}))
    port = free_port()
    with over_at_last(simulation):
        write_connection(simulation.folder, port, "insecure = true")
        command = [program("flower-superlink"), "--insecure", "--simulation"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        superlink = simulation.start("superlink", command, cwd=cwd)
        wait_until_healthy(simulation, superlink, f"http://127.0.0.1:{port}/health")
        yield simulation


def fresh_setting(added: Mapping[str, str]) -> tuple[Path, dict[str, str]]:
    """Make a folder for processes of Flower; return it and their environment.

    Args:
        added: Added to the environment.
    """
    # Ray's sockets lie under this folder and a socket's path is at most 107 bytes long, which
    # pytest's own folders leave no room for.
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    # Flower starts its children by their bare names.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        **QUIET_ENVIRONMENT,
        "PATH": path,
        "FLWR_HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        MARKER: uuid.uuid4().hex,
        **added,
    }
    return folder, environment


@contextlib.contextmanager
def over_at_last(flower: FlowerProcesses) -> Iterator[None]:
    """End all processes after the block and remove their folder."""
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, flower.folder, ignore_errors=True)
        stack.callback(_reap, flower.children)
        stack.callback(end, flower.environment[MARKER], variable=MARKER)
        yield


def _reap(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.wait(END_TIMEOUT_S)


def write_connection(folder: Path, port: int, trust: str) -> None:
    """Make a SuperLink on loopback the one that ``flwr`` speaks to.

    Args:
        folder: Flower's home.
        port: The SuperLink's.
        trust: Line that says how it is known, e.g. ``insecure = true``.
    """
    lines = ["[superlink]", f'default = "{CONNECTION}"', f"[superlink.{CONNECTION}]"]
    lines += [f'address = "127.0.0.1:{port}"', trust]
    (folder / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_words(app_dir: Path) -> list[str]:
    """Return the words of a ``flwr run`` that waits for the run's end."""
    return ["run", str(app_dir), CONNECTION, "--stream"]


def words_of(run_config: Mapping[str, Setting] | Path) -> list[str]:
    """Return the words that override a run's configuration."""
    if isinstance(run_config, Path):
        return ["--run-config", str(run_config)]
    values = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
    return ["--run-config", values] if values else []


def wait_until_healthy(
    flower: FlowerProcesses,
    superlink: subprocess.Popen[bytes],
    url: str,
    context: ssl.SSLContext | None = None,
) -> None:
    """Wait until a SuperLink answers, ``START_TIMEOUT_S`` at most."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _is_healthy(url, context):
        # Waiting for an end that should not come is what paces the attempts.
        with contextlib.suppress(subprocess.TimeoutExpired):
            superlink.wait(timeout=0.1)
        if superlink.returncode is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"the SuperLink did not start in {START_TIMEOUT_S:g} s:\n{flower.logs()}"
            )


def _is_healthy(url: str, context: ssl.SSLContext | None) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1, context=context) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """Return a port on loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str) -> str:
    """Return the path of a program of this interpreter's environment."""
    return str(Path(sys.executable).parent / name)
