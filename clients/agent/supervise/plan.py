"""Which processes a device runs, from its configuration."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clients.agent.config import DeviceConfig
from clients.agent.doctor.clock import kept_by_ntp
from clients.agent.refused import refusal_of
from clients.agent.service import (
    agent_command,
    agent_environment,
    supernode_command,
    supernode_environment,
)
from clients.agent.supervise.clockwait import ClockGate
from clients.agent.supervise.nightly import NightlyWear, nights_of
from fleet.errors import FleetError, InputError, UnavailableError
from fleet.supervise.child import Exit
from fleet.supervise.record import Program
from fleet.supervise.restarts import Backoff
from fleet.supervise.ward import Spec

__all__ = [
    "AGENT",
    "AGENT_BACKOFF",
    "AGENT_STOP_S",
    "PROGRAM",
    "SUPERNODE",
    "SUPERNODE_BACKOFF",
    "SUPERNODE_STOP_S",
    "specs_of",
]

AGENT, SUPERNODE = "agent", "supernode"
PROGRAM = Program("fleet-device run", "fleet-device status", "--state")
AGENT_BACKOFF = Backoff(least_s=0.5, first_s=2.0, longest_s=60.0, steady_s=60.0)
# A keyed node that restarts is refused for up to 60 s, while its old session lasts, so the longest
# delay outlasts that; each refused start takes a small board seconds of all its cores.
SUPERNODE_BACKOFF = Backoff(least_s=1.0, first_s=5.0, longest_s=90.0, steady_s=120.0)
# The loop does nothing else while it asks, so it asks briefly; no answer is one, too.
CLOCK_ASK_S = 2.0
# The agent's socket takes 5 s and a training 20 s at most to end; Flower's SuperNode deactivates at
# its server first.
AGENT_STOP_S = 30.0
SUPERNODE_STOP_S = 30.0
MISSING = "No module named"
# Flower's lines about each message would drown the agent's; who wants them sets the variable.
QUIET = {"FLWR_LOG_LEVEL": "WARNING"}
TORCH = "Name a Python that has the device's torch under interpreters.agent in device.toml."
# What a Python of another version must not inherit from the one that runs fleet-device.
OF_ONE_PYTHON = ("PYTHONHOME", "PYTHONPATH")


def specs_of(
    config: DeviceConfig, state: Path, only: str, environment: Mapping[str, str]
) -> list[Spec]:
    """Return the processes to run, the agent first.

    Args:
        config: The device.
        state: State directory, absolute.
        only: ``agent``, ``supernode``, or ``""`` for both, of which a device without a server has
            the agent alone.
        environment: That of this process.

    Raises:
        InputError: ``no-server`` when the SuperNode alone is wanted and has none.
        UnavailableError: ``program-missing``.
    """
    if only == SUPERNODE and not config.server:
        raise InputError(
            "no-server",
            f"{config.name} has no server, and its SuperNode would call none",
            f'Write server = "HOST:PORT" into {state / "device.toml"}.',
        )
    specs = []
    if only != SUPERNODE:
        specs.append(_agent(config, state, environment))
    if only != AGENT and config.server:
        specs.append(_supernode(config, state, environment))
    return specs


def _agent(config: DeviceConfig, state: Path, environment: Mapping[str, str]) -> Spec:
    python, command = config.python_of("agent"), agent_command(config, state)
    extra = f"Install it: {python} -m pip install 'corefleet[device-agent]'"
    _check(command[0], "Name the agent's Python under interpreters.agent in device.toml.")
    return Spec(
        name=AGENT,
        command=command,
        environment=_environment(environment, python, agent_environment(state)),
        backoff=AGENT_BACKOFF,
        stop_s=AGENT_STOP_S,
        final=lambda end, lines: _final(end, lines, python, extra),
    )


def _supernode(config: DeviceConfig, state: Path, environment: Mapping[str, str]) -> Spec:
    python, command = config.python_of("bridge"), supernode_command(config, state)
    _check(
        command[0],
        f"Install it: {python} -m pip install 'corefleet[device-bridge]', or name another Python"
        " under interpreters.bridge in device.toml, or run --only agent.",
    )
    nights, limit_s = nights_of(config.run.recycle_at, config.name), config.run.wait_for_clock_s
    return Spec(
        name=SUPERNODE,
        command=command,
        environment=_environment(
            {**QUIET, **environment}, python, supernode_environment(config, state)
        ),
        backoff=SUPERNODE_BACKOFF,
        stop_s=SUPERNODE_STOP_S,
        wear=None if nights is None else partial(NightlyWear, nights),
        gate=lambda: ClockGate(limit_s, lambda: kept_by_ntp(CLOCK_ASK_S)),
        recycled_on_hangup=True,
        cause=refusal_of,
    )


def _environment(ours: Mapping[str, str], python: str, theirs: Mapping[str, str]) -> dict[str, str]:
    left_out = OF_ONE_PYTHON if python != sys.executable else ()
    kept = {name: value for name, value in ours.items() if name not in left_out}
    # A line is worth reading when it is printed, not when a buffer is full.
    return {**kept, "PYTHONUNBUFFERED": "1", **theirs}


def _check(program: str, hint: str) -> None:
    if not (os.path.isfile(program) and os.access(program, os.X_OK)):
        raise UnavailableError("program-missing", f"there is no program {program}", hint)


def _final(end: Exit, lines: list[str], python: str, extra: str) -> FleetError | None:
    """Return the error after which the agent is not started again; see ``Spec.final``."""
    last = lines[0] if lines else ""
    if end.status == 1 and MISSING in last:
        return UnavailableError(
            "extra-missing", f"{python}: {last[-300:]}", TORCH if "'torch'" in last else extra
        )
    if end.status != InputError.exit_code:
        return None
    told = next((each for each in map(_error_of, lines) if each is not None), None)
    hint = "See log/agent.log in the state directory, and: fleet-device doctor"
    if told is None:
        return InputError("agent-refused", f"the agent ended with exit code 4: {last[-300:]}", hint)
    return InputError(str(told["code"]), str(told["detail"]), str(told.get("hint") or hint))


def _error_of(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    # As the agent's daemon prints it.
    return found if isinstance(found, dict) and {"code", "detail"} <= set(found) else None
