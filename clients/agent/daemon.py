"""The agent's process: opens what is durable, puts it right, then answers over its socket.

Started by ``fleet-device run`` or systemd as ``python -m clients.agent.daemon --state DIR``. It
prints one JSON object per event to standard error, and ends with the exit codes of
``fleet.errors``; SIGTERM and SIGINT end it with 0 once its work has a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clients.agent.config import AGENT_SOCKET, DeviceConfig, load_config
from fleet.errors import FleetError, InputError, RoundError, StorageError

__all__ = ["REST_S", "TIDY_S", "WATCH_S", "main", "say", "served_agent"]

TIDY_S = 3600.0
"""Between two times of giving freed space back and of finishing what a full disk cut off."""
WATCH_S = 600.0
"""Between two looks for drift at what has come since."""
PING_S = 1.0
"""How long to look whether another agent answers already."""
REST_S = 20.0
"""How long the end waits for a training to keep its checkpoint."""


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m clients.agent.daemon", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state directory of the device")
    state: Path = parser.parse_args(arguments).state.absolute()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        with served_agent(state, stopping) as finish:
            while not stopping.wait(WATCH_S):
                finish()
    except FleetError as error:
        say("agent.failed", code=error.code, detail=error.message, hint=error.hint)
        return error.exit_code
    say("agent.ended")
    return 0


@contextlib.contextmanager
def served_agent(state: Path, stopping: threading.Event) -> Iterator[Any]:
    """Open a device and answer over its socket until the block ends.

    Args:
        state: State directory.
        stopping: Set it before the block ends, so that a training under way keeps a checkpoint.

    Yields:
        What to call every :data:`WATCH_S`; it tidies every :data:`TIDY_S`.

    Raises:
        FleetError: Why the agent cannot run.
    """
    config = load_config(state)
    if not config.base_path(state).is_file():
        raise InputError(
            "no-base",
            f"{state} has no base, so there is nothing to serve or to train",
            f"Install the fleet's: fleet-device init --name {config.name} --base FILE",
        )
    from clients.link.caller import ping

    # Its socket's lock says so for certain, but only after the model was put right.
    if other := ping(state / AGENT_SOCKET, PING_S):
        raise StorageError(
            "agent-running",
            f"another agent answers on {state / AGENT_SOCKET}: process {other.pid}",
            "One agent runs per state directory; see: fleet-device status",
        )
    # Only now torch is needed, and what comes before fails within a moment.
    from clients.agent.answering.agent import Agent
    from clients.agent.answering.held import Held
    from clients.agent.answering.world import World
    from clients.agent.private.cores import PrivateCores
    from clients.agent.private.worker import Worker
    from clients.agent.serving.recover import recover
    from clients.agent.serving.serve import Serving
    from clients.agent.store import Caps, open_store
    from clients.link.records import About
    from clients.link.service import serve

    caps = Caps.model_validate(config.caps.model_dump())
    with open_store(state, clock=time.time, caps=caps) as store:
        for notice in store.notices:
            say("store.repaired", detail=notice)
        serving = Serving(state)
        recovery = recover(serving)
        say("model.opened", **recovery.model_dump(mode="json"))
        own = version("corefleet")
        held = Held(state, store, serving, own)
        world = World(say=say, stopping=stopping)
        read = _reader(state, config)
        agent = Agent(held, read, world)
        agent.finish()
        worker = Worker(agent, PrivateCores(agent, held, read, world), world)

        tidied = time.monotonic()

        def finish() -> None:
            nonlocal tidied
            _watched(agent.watch)
            if time.monotonic() - tidied < TIDY_S:
                return
            tidied = time.monotonic()
            try:
                store.tidy()
                agent.finish()
            except RoundError:
                pass  # it is at work; the next time will do
            except StorageError as error:
                say("store.refused", reason=error.code, detail=error.message)

        server = serve(
            state / AGENT_SOCKET,
            agent.answer,
            lambda: About(config.name, os.getpid(), own, agent.doing),
        )
        try:
            say("agent.ready", device=config.name, pid=os.getpid(), version=own)
            worker.start()
            yield finish
        finally:
            stopping.set()
            # Whoever waits for an answer asks again, and the next agent goes on where this one is.
            server.close(grace_s=0)
            agent.rest(REST_S)
            worker.end(REST_S)


def _watched(watch: Callable[[], None]) -> None:
    """Look for drift; whatever goes wrong is said, and ends neither the agent nor its tidying."""
    try:
        watch()
    except StorageError as error:
        say("drift.failed", reason=error.code, detail=error.message)
    except Exception as error:  # a bug here must not end what answers the fleet
        say("drift.failed", reason="agent-failed", detail=f"{type(error).__name__}: {error}")


def say(event: str, **values: Any) -> None:
    """Print an event as one line of JSON to standard error."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    line = json.dumps({"at": now, "event": event, **values}, default=str)
    with contextlib.suppress(OSError):  # nobody reads any more: the work goes on
        print(line, file=sys.stderr, flush=True)


def _reader(state: Path, last: DeviceConfig) -> Any:
    """Return a reader of the configuration that goes on with the last good one."""
    kept = [last]

    def read() -> DeviceConfig:
        try:
            kept[0] = load_config(state)
        except FleetError as error:
            say("config.refused", reason=error.code, detail=error.message)
        return kept[0]

    return read


if __name__ == "__main__":
    sys.exit(main())
