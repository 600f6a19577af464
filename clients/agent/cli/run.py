"""``fleet-device run``: the agent and its SuperNode, kept running in the foreground."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption
from clients.agent.config import DeviceConfig, load_config
from clients.agent.supervise.plan import PROGRAM, SUPERNODE, specs_of
from fleet.commands import error_envelope
from fleet.errors import FleetError
from fleet.supervise.supervisor import Supervisor
from fleet.supervise.told import Tell, Told
from fleet.supervise.ward import World

__all__ = ["Only", "run"]


class Only(str, Enum):
    """One of the two processes."""

    agent = "agent"
    supernode = "supernode"


def run(
    state: StateOption = DEFAULT_STATE,
    only: Annotated[
        Only | None, typer.Option("--only", help="Run this process alone; default: both.")
    ] = None,
    form: FormatOption = Format.table,
) -> int:
    """Run the agent and its SuperNode, and keep them running, until SIGTERM or Ctrl-C.

    A process that ends is started again after a delay that grows; the SuperNode waits for a set
    clock and is restarted each night, or at once on SIGHUP. Events go to standard output, one per
    line; what the processes print goes to standard error and to log/ in the state directory.
    """
    state = state.expanduser().absolute()
    tell = _teller(form)
    try:
        config = load_config(state)
        specs = specs_of(config, state, only.value if only else "", os.environ)
        if only is None and SUPERNODE not in [spec.name for spec in specs]:
            tell(_alone(config, state))
        return Supervisor(specs, state, config.run.log_bytes, PROGRAM, _world(), tell, _hear).run()
    except FleetError as error:
        if form is not Format.json:
            raise
        # One line like every event: a reader of lines need not know how the last one looks.
        _print(sys.stdout, json.dumps(json.loads(error_envelope(error))))
        return error.exit_code


run.examples = (  # type: ignore[attr-defined]  # the root prints it under the help
    "Examples:\n\nfleet-device run\n\nfleet-device run --only agent\n\n"
    "fleet-device run --format json"
)


def _alone(config: DeviceConfig, state: Path) -> Told:
    return Told(
        "server.none",
        f"{config.name} has no server, so the agent runs alone; to join a fleet write"
        f' server = "HOST:PORT" into {state / "device.toml"}',
    )


def _world() -> World:
    return World(
        # Time asleep counts: a delay is over and a night has passed although the board slept.
        clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        now=lambda: datetime.now().astimezone(),
        draw=random.SystemRandom().random,
    )


def _teller(form: Format) -> Tell:
    show: Callable[[Told, datetime], str] = (
        Told.line if form is Format.table else lambda told, at: json.dumps(told.record(at))
    )

    def tell(told: Told) -> None:
        _print(sys.stdout, show(told, datetime.now().astimezone()))

    return tell


def _hear(process: str, line: str) -> None:
    _print(sys.stderr, f"{process} | {line}")


def _print(stream: TextIO, line: str) -> None:
    # Whoever reads may go away; the device goes on.
    try:
        stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError):
        return
