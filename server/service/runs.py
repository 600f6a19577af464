"""A run of the fleet, started by Flower's own ``flwr run`` with the installed app."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomllib

from fleet.config import RunConfig
from fleet.errors import InputError, RoundError, UnavailableError
from server.flower import QUIET_ENVIRONMENT
from server.flower_control import UnreachableError
from server.service.bundle import write_bundle, write_run_config
from server.service.folder import CONNECTION, ServerFolder, read_bytes

__all__ = ["placed_config", "start_run"]

# flwr alone takes seconds to start.
START_S = 120.0
# A path of these is read by the server, which works elsewhere than whoever starts the run.
PATHS = ("base", "trace", "out", "registry", "release-key")
SHOWN = 1500


def placed_config(path: Path | None, folder: ServerFolder) -> RunConfig:
    """Read a run's configuration; relative paths in it are those of its own folder.

    Args:
        path: TOML file in the keys of ``docs/run-config.md``; ``None``: all defaults.
        folder: Of the server; results of a run that names no folder go to ``runs/`` in it.

    Raises:
        InputError: ``run-config`` when it is no TOML or breaks a rule.
        StorageError: ``unreadable``.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(read_bytes(path).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError("run-config", f"{path} is no TOML: {error}", "") from error
        for key in PATHS:
            value = values.get(key)
            if isinstance(value, str) and value and _is_path(key, value):
                values[key] = str(path.absolute().parent / Path(value).expanduser())
        data = values.get("data")
        if isinstance(data, str) and data and (path.absolute().parent / data).exists():
            values["data"] = str(path.absolute().parent / data)
    values.setdefault("out", str(folder.runs / "fleet"))
    if folder.release_key.is_file():  # devices that pinned its public half take nothing else
        values.setdefault("release-key", str(folder.release_key))
    return RunConfig.parse(values)


def start_run(config: RunConfig, folder: ServerFolder) -> str:
    """Start a run and return Flower's id of it.

    Raises:
        RoundError: ``run-refused`` with what ``flwr run`` said.
        UnavailableError: ``program-missing``.
        UnreachableError: ``superlink-silent`` when it took longer than ``START_S``.
    """
    bundle = write_bundle(folder.bundle)
    run_config = write_run_config(config, folder.path / "run-config.toml")
    program = Path(sys.executable).with_name("flwr")
    words = [str(program), "run", str(bundle), CONNECTION, "--format", "json"]
    programs = os.pathsep.join([str(program.parent), os.environ.get("PATH", os.defpath)])
    ours = {**QUIET_ENVIRONMENT, "FLWR_HOME": str(folder.flower_home), "PATH": programs}
    try:
        done = subprocess.run(
            [*words, "--run-config", str(run_config)],
            env={**os.environ, **ours, "NO_PROXY": "127.0.0.1,localhost"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnavailableError(
            "program-missing", f"there is no program {program}", "pip install 'corefleet[server]'"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            "superlink-silent", f"flwr run did not end within {START_S:g} s", "fleet server status"
        ) from error
    told = _told(done.stdout)
    if done.returncode or not told.get("success"):
        why = told.get("error-message") or (done.stdout + done.stderr).strip()[-SHOWN:]
        hint = "Does the server run? See: fleet server status"
        raise RoundError("run-refused", f"flwr run did not start a run: {why}", hint)
    return str(told["run-id"])


def _is_path(key: str, value: str) -> bool:
    # A trace may also be a name, e.g. nightly, and a registry a database's URL.
    if key == "registry":
        return "://" not in value
    return key != "trace" or "/" in value or value.endswith((".json", ".csv", ".toml"))


def _told(text: str) -> dict[str, Any]:
    """Return the JSON that ends what ``flwr`` printed."""
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
