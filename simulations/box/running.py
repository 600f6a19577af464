"""Runs a fleet in a box: one supervisor over the server and every device, and who steers them.

    main thread     supervisor ── fleet server up, fleet-device run, …, each with its own
    another thread  enrols devices, sets the policy, looks at the registry, ends it all

Every child is a supervisor itself, so whatever ends this process ends them all: devices first.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from clients.agent.config import PUBLIC_KEY
from fleet.adapt.base import load_base
from fleet.errors import FleetError, InputError, Interrupted, RoundError, UnavailableError
from fleet.peft.registry import find
from fleet.supervise.child import Exit
from fleet.supervise.record import Program
from fleet.supervise.restarts import Backoff
from fleet.supervise.supervisor import Supervisor
from fleet.supervise.told import Tell
from fleet.supervise.ward import Sight, Spec, World
from server.control.local import LocalVerbs
from server.control.reach import opened_fleet
from server.control.requests import DeviceEnroll
from server.control.verbs.fleet import Fleet
from server.registry import Registry
from simulations.box.looking import Looker, is_done
from simulations.box.wanted import Box, Wanted

__all__ = [
    "BACKOFF",
    "GATHER_S",
    "PROGRAM",
    "READY_S",
    "STALL_S",
    "Steering",
    "run_box",
    "specs_of",
]

PROGRAM = Program("fleet up", "fleet server status", "--folder")
BACKOFF = Backoff(least_s=0.5, first_s=2.0, longest_s=30.0, steady_s=60.0)
STOP_S = 90.0
READY_S = 180.0
"""Longest time until devices can come to the server."""
GATHER_S = 180.0
"""Longest time that the first round waits for a device; then it goes on without."""
STALL_S = 900.0
"""Longest time in which nothing happens in a fleet that is to end by itself."""
LOOK_S = 1.0
LOOK_EVERY_S = 0.25
LOG_BYTES = 4 * 2**20
SERVER = "server"
ACTOR = "fleet-up"
READY = '"event": "server.ready"'
# Devices share few cores, and their networks are small.
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# A device's Flower looks for work once a second; the server has one task, which never ends, so
# there more looks would only cost the SuperLink time.
DEVICE_SURROUNDINGS = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}

Json = dict[str, Any]


class _Gate:
    """Holds a device back until it is enrolled."""

    def __init__(self, opened: threading.Event) -> None:
        self._opened = opened

    def look(self, world: World) -> Sight:
        """Look once."""
        return Sight(self._opened.is_set(), next_s=LOOK_EVERY_S)


class Steering:
    """What is done beside the supervisor; one thread, :meth:`run`.

    Args:
        wanted: The fleet.
        box: Its files.
        names: Of the devices.
        show: Given what was seen, every second.
        end: Ends the supervisor.

    Attributes:
        ready: Set when devices can come.
        enrolled: Set when every device is known.
        leaving: Set when the supervisor has ended.
        error: Why it ended early.
        seen: What was seen last.
        done: Whether every round is over.
    """

    def __init__(
        self,
        wanted: Wanted,
        box: Box,
        names: Sequence[str],
        show: Callable[[Json], None],
        end: Callable[[], None],
    ) -> None:
        self._wanted, self._box, self._names = wanted, box, names
        self._show, self._end = show, end
        self.ready, self.enrolled = threading.Event(), threading.Event()
        self.leaving = threading.Event()
        self.error: Exception | None = None
        self.seen: Json | None = None
        self.done = False

    def hear(self, process: str, line: str) -> None:
        """Take a line of a process."""
        if process == SERVER and READY in line:
            self.ready.set()

    def run(self) -> None:
        """Steer until it is over, and then end the supervisor."""
        try:
            self._steer()
        except Exception as error:
            self.error = error
        if not self.leaving.is_set():
            self._end()

    def _steer(self) -> None:
        until = time.monotonic() + READY_S
        while not self.ready.wait(LOOK_EVERY_S):
            if self.leaving.is_set():
                return
            if time.monotonic() > until:
                raise RoundError(
                    "server-silent",
                    f"the server was not ready within {READY_S:g} s",
                    f"See {self._box.path}/log/server.log and {self._box.server.path}/log.",
                )
        fleet = opened_fleet(self._box.server)
        with fleet.registry:
            self._enrol(fleet)
            self.enrolled.set()
            looker = Looker(fleet.registry)
            self._gather(looker)
            self._begin(fleet.registry)
            self._watch(looker)

    def _enrol(self, fleet: Fleet) -> None:
        """Make devices and base known; a second time changes nothing."""
        registry, verbs = fleet.registry, LocalVerbs(fleet, ACTOR)
        base = load_base(self._box.base)
        registry.bases.install(base.digest, self._box.base.read_bytes(), actor=ACTOR)
        known = {device.name for device in registry.devices.all()}
        for name in self._names:
            if name not in known:
                line = (self._box.device(name) / PUBLIC_KEY).read_text("utf-8").strip()
                verbs.ask(DeviceEnroll(key=f"up-{name}", device=name, public_key=line))

    def _gather(self, looker: Looker) -> None:
        """Wait until every device has said what it serves, so that the first round has them all."""
        until = time.monotonic() + GATHER_S
        while time.monotonic() < until and not self.leaving.wait(LOOK_S):
            self.seen = looker.look()
            self._show(self.seen)
            if all(device["release"] >= 0 for device in self.seen["devices"]):
                return

    def _begin(self, registry: Registry) -> None:
        """Set the policy, by which rounds begin; the same one again changes nothing."""
        base = load_base(self._box.base)
        rate = self._wanted.rate or find("core").default_rate
        policy = self._wanted.policy(base.digest, base.record.rank, rate)
        registry.policy.set(policy, why="fleet up", actor=ACTOR)

    def _watch(self, looker: Looker) -> None:
        last, since = "", time.monotonic()
        while not self.leaving.wait(LOOK_S):
            self.seen = looker.look()
            self._show(self.seen)
            if is_done(self.seen, self._wanted.rounds, len(self._names)):
                self.done = True
                return
            now = json.dumps({**self.seen, "doing": {}})
            if now != last:
                last, since = now, time.monotonic()
            if self._wanted.rounds and time.monotonic() - since > STALL_S:
                doing = json.dumps(self.seen["doing"])
                raise RoundError(
                    "fleet-stalled",
                    f"nothing has happened for {STALL_S:g} s; the service says {doing}",
                    f"See {self._box.server.path}/log and {self._box.path}/log.",
                )


def run_box(
    wanted: Wanted, box: Box, names: Sequence[str], show: Callable[[Json], None], tell: Tell
) -> tuple[Json | None, bool]:
    """Run a box until its rounds are over, or until SIGINT or SIGTERM; leave no process behind.

    Args:
        wanted: The fleet.
        box: What :func:`simulations.box.making.make_box` made.
        names: Of its devices.
        show: Given what was seen, every second, in another thread.
        tell: Told of every event of the supervisor.

    Returns:
        What was seen last, and whether a signal ended it.

    Raises:
        Interrupted: By SIGINT before the rounds that were wanted were over.
        FleetError: Why it ended early.
    """
    steering = Steering(wanted, box, names, show, lambda: os.kill(os.getpid(), signal.SIGTERM))
    thread = threading.Thread(target=steering.run, name="steering", daemon=True)
    specs = specs_of(box, names, os.environ, steering.enrolled)
    world = World(time.monotonic, lambda: datetime.now().astimezone(), random.SystemRandom().random)
    supervisor = Supervisor(specs, box.path, LOG_BYTES, PROGRAM, world, tell, steering.hear)
    thread.start()
    try:
        supervisor.run()
    finally:
        steering.leaving.set()
        thread.join(STOP_S)
    if steering.error is not None:
        raise steering.error
    if wanted.rounds and not steering.done:
        raise Interrupted("interrupted", "interrupted before all rounds were over", "")
    return steering.seen, not steering.done


def specs_of(
    box: Box, names: Sequence[str], environment: Mapping[str, str], enrolled: threading.Event
) -> list[Spec]:
    """Return the processes in the order of their start: the server, then the devices.

    Args:
        box: Where they are.
        names: Of the devices.
        environment: That of this process.
        enrolled: Devices start when it is set.

    Raises:
        UnavailableError: ``program-missing``.
    """
    words = ["server", "up", "--folder", str(box.server.path), "--format", "json"]
    surroundings = {**SURROUNDINGS, **environment, "PYTHONUNBUFFERED": "1"}
    common: Json = {"backoff": BACKOFF, "stop_s": STOP_S}
    command = [_program("fleet"), *words]
    specs = [
        Spec(SERVER, command, environment=surroundings, final=partial(_final, SERVER), **common)
    ]
    surroundings = {**DEVICE_SURROUNDINGS, **surroundings}
    for name in names:
        own = ["run", "--state", str(box.device(name)), "--format", "json"]
        gate = partial(_Gate, enrolled)
        command = [_program("fleet-device"), *own]
        final = partial(_final, name)
        specs.append(
            Spec(name, command, environment=surroundings, gate=gate, final=final, **common)
        )
    return specs


def _program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not os.access(path, os.X_OK):
        raise UnavailableError(
            "program-missing", f"there is no program {path}", "pip install 'corefleet[sim,server]'"
        )
    return str(path)


def _final(name: str, end: Exit, lines: list[str]) -> FleetError | None:
    """Return the error after which ``name`` is not started again; see ``Spec.final``."""
    if end.status != InputError.exit_code:
        return None
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and {"error_code", "message"} <= set(told):
            what = f"{name}: {told['message']}"
            return InputError(str(told["error_code"]), what, str(told.get("hint", "")))
    return InputError("box-refused", f"{name} ended with exit code {end.status}", "See log/.")
