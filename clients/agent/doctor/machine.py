"""Checks of the machine: Python, torch and its accelerator, disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.agent.config import load_config
from clients.agent.doctor.finding import Finding, Subject, failed, fine, warn
from fleet.errors import FleetError

__all__ = ["TORCH_LIMIT_S", "Ended", "check_config", "check_disk", "check_python", "check_torch"]

OLDEST_PYTHON = (3, 10)
TORCH_LIMIT_S = 60.0
SCRIPT = Path(__file__).with_name("torch_op.py")
FEWEST_FREE_BYTES = 64 * 2**20
MIB = 2**20
TORCH_FIX = "Install the torch of this JetPack or CPU into {python}, or name its Python under"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (negative: a signal) and what it printed."""

    status: int
    output: str
    errors: str


Run = Callable[[Sequence[str], float], "Ended | None"]


def run_process(command: Sequence[str], limit_s: float) -> Ended | None:
    """Run a command to its end; ``None`` when it took too long and was ended."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return Ended(done.returncode, done.stdout, done.stderr)


def check_python(subject: Subject) -> Finding:
    """Python is recent enough for the agent."""
    shown = sys.version.split()[0]
    if sys.version_info < OLDEST_PYTHON:
        return failed(f"Python {shown}; 3.10 is the oldest that works", "Install Python 3.10.")
    return fine(f"Python {shown} at {sys.executable}")


def check_config(subject: Subject) -> Finding:
    """The state directory has a configuration that keeps the rules."""
    try:
        config = load_config(subject.state)
    except FleetError as error:
        return failed(error.message, error.hint)
    if not config.server:
        return warn(
            f"device {config.name} has no server yet",
            f'Write server = "HOST:PORT" into {subject.state / "device.toml"}.',
        )
    return fine(f"device {config.name}, server {config.server}")


def check_torch(subject: Subject, run: Run = run_process) -> Finding:
    """Torch can be imported, and one product of matrices on the accelerator is right."""
    fix = f"{TORCH_FIX.format(python=subject.python)} interpreters.agent in device.toml."
    try:
        ended = run([subject.python, str(SCRIPT)], TORCH_LIMIT_S)
    except OSError as error:
        return failed(f"{subject.python} cannot be started ({error.strerror})", fix)
    if ended is None:
        return failed(f"torch did not answer within {TORCH_LIMIT_S:g} s", "Restart the device.")
    if ended.status < 0:
        name = _signal(-ended.status)
        return failed(f"torch ended the process by {name}; it is built for another machine", fix)
    answer = _answer(ended.output)
    if answer is None:
        last = (ended.errors.strip().splitlines() or ["nothing was printed"])[-1]
        return failed(f"the trial of torch failed: {last[:200]}", fix)
    if not answer.get("torch"):
        return failed(f"torch cannot be imported: {answer.get('error')}", fix)
    return _judged(answer, fix)


def check_disk(subject: Subject) -> Finding:
    """The state directory can be written, durably, and has room for its caps."""
    state = subject.state
    if not state.is_dir():
        return failed(f"there is no folder {state}", "Make it: fleet-device init --name NAME")
    try:
        with tempfile.NamedTemporaryFile(dir=state, prefix=".doctor-") as file:
            file.write(b"corefleet")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return failed(
            f"{state} cannot be written ({error.strerror})",
            "Give the folder to the user that runs the agent, or free some space.",
        )
    free = shutil.disk_usage(state).free
    if free < FEWEST_FREE_BYTES:
        return failed(
            f"{free // MIB} MiB are free, {FEWEST_FREE_BYTES // MIB} are the least",
            "Free some space, or lower the caps in device.toml.",
        )
    wanted = _caps(subject) - _held(state)
    if free < wanted:
        return warn(
            f"{free // MIB} MiB are free, the caps may grow by {wanted // MIB} MiB",
            "Free some space, or lower the caps in device.toml.",
        )
    return fine(f"{state} can be written; {free // MIB} MiB are free")


def _judged(answer: dict[str, Any], fix: str) -> Finding:
    version, device = answer["torch"], answer.get("device", "cpu")
    python = str(answer.get("python", ""))
    if tuple(int(part) for part in re.findall(r"\d+", python)[:2]) < OLDEST_PYTHON:
        return failed(f"torch {version} is in Python {python}; 3.10 is the oldest that works", fix)
    if not answer.get("ok"):
        return failed(f"torch {version} on {device}: {answer.get('error')}", fix)
    if device != "cpu":
        return fine(f"torch {version}: a product of matrices on {device} agrees with the CPU's")
    if answer.get("built_cuda"):
        return warn(
            f"torch {version} is built for CUDA {answer['built_cuda']}, finds no device: cpu-only",
            "Add the agent's user to the groups video and render; on a PC check the driver.",
        )
    return fine(f"torch {version}, cpu-only")


def _answer(output: str) -> dict[str, Any] | None:
    # Libraries may print before it, so the last line counts.
    for line in reversed(output.strip().splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _caps(subject: Subject) -> int:
    return subject.config.caps.total_bytes if subject.config is not None else 0


def _held(state: Path) -> int:
    total = 0
    for path in state.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # the agent may remove a file meanwhile
            continue
    return total
