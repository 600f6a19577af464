"""Keeps the standing service going: ``python -m server.service.keeper --folder DIR``.

It starts the run as ``fleet server start-run`` does, looks at Flower's word and the registry's
heartbeat, and starts it again when it has ended. A keeper that is started anew goes on with the run
of the one before.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fleet.config import RunConfig
from fleet.errors import FleetError
from fleet.files import write_text
from fleet.supervise.child import ticks_of
from fleet.supervise.restarts import Backoff, Course, Ended, Started, step
from fleet.supervise.told import Tell, Told
from server.control.reach import registry_place
from server.flower_control import UnreachableError, control_of
from server.registry import Registry, open_registry
from server.service.config import ServerConfig, load_config
from server.service.folder import ServerFolder, read_bytes
from server.service.keeping import Do, Seen, judged
from server.service.runs import start_run

__all__ = ["Keeper", "Run", "Sight", "main", "read_standing", "run_config_of"]

LOOK_S = 2.0
# A service that lives need not be asked for at the SuperLink, which writes down every question.
FRESH_S = 15.0
ASK_S = 60.0
# One that lived for minutes has recovered.
BACKOFF = Backoff(least_s=0.5, first_s=4.0, longest_s=60.0, steady_s=120.0)


class Run(BaseModel):
    """The run that is the standing service.

    Args:
        run: Flower's id.
        started_at_s: When it was started, seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    started_at_s: float


@dataclass(frozen=True)
class Sight:
    """What the keeper looks at and does.

    Args:
        state: Flower's word about a run.
        stop: Ends a run.
        start: Starts one; returns its id.
        heartbeat: When the service said last that it lives, when it began, and its process.
        others: Runs of the same registry that have not finished.
        clock: Seconds since the epoch.
        now: Monotonic seconds.
        draw: Chance, uniform in [0, 1).
    """

    state: Callable[[str], str]
    stop: Callable[[str], None]
    start: Callable[[], str]
    heartbeat: Callable[[], tuple[float, float, int] | None]
    others: Callable[[], list[str]]
    clock: Callable[[], float] = time.time
    now: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)


class Keeper:
    """Keeps one run going.

    Args:
        sight: What it looks at and does.
        folder: Of the server; its ``standing.json`` says which run it is.
        tell: Told of every event.
    """

    def __init__(self, sight: Sight, folder: ServerFolder, tell: Tell) -> None:
        self._sight, self._folder, self._tell = sight, folder, tell
        self._run = read_standing(folder)
        self._course = Course(since_s=sight.now(), due_s=sight.now())
        self._over_since: float | None = None
        self._asked_at: float | None = None
        self._said = ""

    def look(self) -> None:
        """Look once, and do what follows.

        Raises:
            StorageError: When the registry or ``standing.json`` fails.
        """
        try:
            seen = self._seen()
            do, why = judged(seen)
            if do is Do.stop:
                self._stop(why)
            elif do is Do.start:
                self._start(why)
            elif seen.silent_s is not None and self._said != "standing.lives":
                self._say("standing.lives", f"run {self._id} serves the fleet", run=self._id)
        except UnreachableError as error:
            if self._said != "standing.away":
                self._say("standing.away", error.message, error_code=error.code)

    @property
    def _id(self) -> str:
        return self._run.run if self._run else ""

    def _seen(self) -> Seen:
        if self._run is None:
            return Seen()
        sight = self._sight
        now, clock, beat = sight.now(), sight.clock(), sight.heartbeat()
        age_s, silent_s, alive = clock - self._run.started_at_s, None, False
        if beat is not None and beat[1] >= self._run.started_at_s:
            silent_s, alive = max(0.0, clock - beat[0]), ticks_of(beat[2]) is not None
        fresh = alive and silent_s is not None and silent_s <= FRESH_S
        if fresh and self._asked_at is not None and now - self._asked_at < ASK_S:
            return Seen("running", age_s, silent_s, alive)
        state = self._state(self._run.run)
        over = not state or state.startswith("finished")
        # What has finished is asked for at every look until its process has gone.
        self._asked_at = None if over else now
        if over and self._over_since is None:
            self._over_since = now
        over_s = now - self._over_since if self._over_since is not None else 0.0
        return Seen(state, age_s, silent_s, alive, over_s)

    def _state(self, run: str) -> str:
        try:
            return self._sight.state(run)
        except UnreachableError as error:
            if error.code != "superlink-refused":
                raise
            return ""

    def _stop(self, why: str) -> None:
        self._say("standing.stopped", f"run {self._id} is ended because {why}", run=self._id)
        try:
            self._sight.stop(self._id)
        except UnreachableError as error:
            if error.code != "superlink-refused":  # it has ended by itself
                raise

    def _start(self, why: str) -> None:
        now = self._sight.now()
        if self._run is not None and self._course.phase.value == "up":
            self._course = step(self._course, Ended(why, self._sight.draw()), now, BACKOFF)
            delay_s = round(max(0.0, self._course.due_s - now), 3)
            text = f"restarts in {delay_s:.1f} s because {why}"
            self._say("standing.ended", text, reason=why, delay_s=delay_s)
        if now < self._course.due_s:
            return
        # A keeper that was killed may have started one that it never wrote down.
        for other in self._sight.others():
            self._sight.stop(other)
        at = self._sight.clock()
        self._course = step(self._course, Started(), now, BACKOFF)
        try:
            run = Run(run=self._sight.start(), started_at_s=at)
        except UnreachableError:
            self._failed("the SuperLink is away")
            raise
        except FleetError as error:
            self._failed(error.message)
            self._say("standing.refused", error.message, error_code=error.code)
            return
        write_text(self._folder.standing, run.model_dump_json() + "\n")
        self._run, self._over_since, self._asked_at = run, None, None
        self._say("standing.started", f"started as run {run.run}", run=run.run)

    def _failed(self, why: str) -> None:
        ended = Ended(why, self._sight.draw())
        self._course = step(self._course, ended, self._sight.now(), BACKOFF)

    def _say(self, event: str, text: str, **data: str | float) -> None:
        self._said = event
        self._tell(Told(event, text, "", data))


def read_standing(folder: ServerFolder) -> Run | None:
    """Return which run is the standing service; ``None`` where none is known."""
    try:
        return Run.model_validate_json(read_bytes(folder.standing))
    except (FleetError, ValidationError):
        return None


def run_config_of(folder: ServerFolder) -> RunConfig:
    """Return the configuration of the run that is the standing service."""
    key = folder.release_key
    values = {"registry": str(registry_place(folder)), "out": str(folder.runs / "fleet")}
    return RunConfig.parse({**values, "release_key": str(key) if key.is_file() else ""})


def main(arguments: list[str] | None = None) -> int:
    """Keep it going until told to end; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.service.keeper")
    parser.add_argument("--folder", type=Path, required=True, help="The server's.")
    folder = ServerFolder(parser.parse_args(arguments).folder.expanduser().absolute())
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        config = load_config(folder)
        with open_registry(registry_place(folder), clock=time.time) as registry:
            keeper = Keeper(_sight(folder, config, registry), folder, _tell)
            while not ended.is_set():
                keeper.look()
                ended.wait(LOOK_S)
    except FleetError as error:
        told = {"event": "standing.failed", "code": error.code, "detail": error.message}
        print(json.dumps({**told, "hint": error.hint}), flush=True)
        return error.exit_code
    return 0


def _sight(folder: ServerFolder, config: ServerConfig, registry: Registry) -> Sight:
    def state(run: str) -> str:
        with control_of(config.superlink_address, folder.authority) as control:
            return control.run_state(int(run))

    def stop(run: str) -> None:
        with control_of(config.superlink_address, folder.authority) as control:
            control.stop_run(int(run))

    def heartbeat() -> tuple[float, float, int] | None:
        found = registry.observations.heartbeat()
        return None if found is None else (found.alive_at_s, found.started_at_s, found.pid)

    def others() -> list[str]:
        with control_of(config.superlink_address, folder.authority) as control:
            return [str(run) for run in control.runs_with("registry", run_config.registry)]

    run_config = run_config_of(folder)
    return Sight(state, stop, lambda: start_run(run_config, folder), heartbeat, others)


def _tell(told: Told) -> None:
    print(json.dumps(told.record(datetime.now().astimezone())), flush=True)


if __name__ == "__main__":
    sys.exit(main())
