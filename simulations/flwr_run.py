"""Rounds in Flower's own runtime: ``flwr run`` as a user would give it, ended with all it starts.

The app in this checkout writes the same folder as our own engines: rounds, releases, evaluations
and the merged model. What is left to do here is to start it, to watch that folder, and to read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from fleet.adapt.base import Base
from fleet.config import RunConfig
from fleet.errors import RoundError, UnavailableError
from fleet.federate.releases import Release
from server.flower import QUIET_ENVIRONMENT
from server.store import RunFolder
from simulations.placed import placed
from simulations.processes import Command, execute
from simulations.progress import Progress

__all__ = ["flwr_command", "flwr_run"]

CHECKOUT = Path(__file__).parents[1]
# SuperLink, Ray and every actor start afresh.
START_S = 300.0
LOOK_S = 0.5
LOG_CHARACTERS = 2000


def flwr_run(
    config: RunConfig, base: Base, folder: RunFolder, devices: int, cpus: int, progress: Progress
) -> Release:
    """Run a method's remaining rounds with ``flwr run``; return the last release.

    Args:
        config: The run; ``method``, ``learning_rate``, ``base`` and ``out`` are the method's.
        base: What it starts from.
        folder: The method's folder in ``config.out``; ``flwr.log`` in it is what Flower printed.
        devices: Virtual devices.
        cpus: Actors of one CPU each.
        progress: Told of each round.

    Raises:
        UnavailableError: ``no-checkout`` when the app that Flower runs is not at hand.
        RoundError: ``flwr-run`` when it ends without the last release.
    """
    if not (CHECKOUT / "corefleet_app").is_dir():
        raise UnavailableError(
            "no-checkout",
            f"flwr run needs a checkout with its pyproject.toml; {CHECKOUT} is none",
            "Use --engine cohort, whose results are the same up to rounding.",
        )
    folder.folder.mkdir(parents=True, exist_ok=True)
    log = folder.folder / "flwr.log"
    limit_s = START_S + (config.rounds + 1) * (config.patience_s + 2 * config.deadline_s)
    # Ray's sockets lie in here, and a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fleet-", ignore_cleanup_errors=True) as home:
        command = flwr_command(placed(config), Path(home), devices, cpus)
        with _watched(folder, config.rounds, progress):
            done = execute(command, Path.cwd(), log, limit_s)
    release = folder.last_release(base)
    if release is None or release.number < config.rounds:
        end = log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:]
        raise RoundError(
            "flwr-run",
            f"flwr run ended with {done.code} and without release {config.rounds}:\n{end}",
            f"All that it printed is in {log}.",
        )
    return release


def flwr_command(
    config: RunConfig, home: Path, devices: int, cpus: int, *, tuned: bool = True
) -> Command:
    """Return the command of a run, with a SuperLink of its own.

    Tuned is what a user can do without touching code: one core and so one actor per core for a
    client instead of Flower's two, the SuperLink's state in memory, one thread per actor.

    Args:
        config: The run, with whole paths.
        home: An empty folder for Flower's and Ray's files.
        devices: Virtual devices.
        cpus: Actors of one CPU each, where it is tuned.
        tuned: Whether it is; else with Flower's own settings.
    """
    address = ":local-in-memory:" if tuned else ":local:"
    lines = ["[superlink]", 'default = "own"', "[superlink.own]", f'address = "{address}"']
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = config.for_flower().items()
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values)
    (home / "run.toml").write_text(text, encoding="utf-8")
    federation = f"num-supernodes={devices}"
    if tuned:
        federation += f" client-resources-num-cpus=1 init-args-num-cpus={cpus}"
    programs = Path(sys.executable).parent
    words = [str(programs / "flwr"), "run", str(CHECKOUT), "--stream"]
    words += ["--federation-config", federation, "--run-config", str(home / "run.toml")]
    ports = _free_ports(2)
    environment = {
        **QUIET_ENVIRONMENT,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": ports[0],
        "FLWR_LOCAL_CONTROL_API_PORT": ports[1],
        # Flower starts its children by their bare names.
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if tuned:
        environment["OMP_NUM_THREADS"] = "1"
    return Command(tuple(words), environment)


@contextlib.contextmanager
def _watched(folder: RunFolder, rounds: int, progress: Progress) -> Iterator[None]:
    """Tell of each round as soon as its record is there."""
    over, seen = threading.Event(), len(folder.round_numbers())

    def watch() -> None:
        told = seen
        while True:
            last = over.wait(LOOK_S)
            for number in range(told + 1, len(folder.round_numbers()) + 1):
                progress.advance(f"round {number}/{rounds}")
                told = number
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]
