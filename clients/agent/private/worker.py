"""The thread that looks after the private core while the agent answers messages."""

from __future__ import annotations

import threading

from clients.agent.answering.agent import Agent
from clients.agent.answering.world import World
from clients.agent.private.cores import PrivateCores

__all__ = ["Worker"]


class Worker:
    """Looks at once, each time that a message was answered, and every ``cadence.private_s``.

    Args:
        agent: Tells when it is idle.
        cores: What it looks after.
        world: The wish to stop, and somebody to tell.
    """

    def __init__(self, agent: Agent, cores: PrivateCores, world: World) -> None:
        self._agent = agent
        self._cores = cores
        self._world = world
        self._thread = threading.Thread(target=self._run, name="private-core", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self, limit_s: float) -> bool:
        """Wait for the end, once ``world.stopping`` is set; tells whether it came."""
        self._agent.idle.set()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._world.stopping.is_set():
            self._agent.idle.clear()
            try:
                self._cores.look()
            except Exception as error:  # a bug here must not end what answers the fleet
                self._world.say("personal.failed", error=f"{type(error).__name__}: {error}")
                self._world.stopping.wait(self._world.cadence.private_s)
            if not self._world.stopping.is_set():
                self._agent.idle.wait(self._world.cadence.private_s)
