"""A fleet in a box whose server's processes are killed by chance, and how it comes back.

    strike: wait for its round, and for so many updates of it ─► let a drawn time pass ─► SIGKILL
    healed: a new process of each kind that died, each by a sign of life of its own

The box is the one of ``fleet up``: nothing here starts what was killed, or knows how it starts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.control.certificates import issue
from server.control.roles import Role
from server.registry import Registry, open_registry
from server.service.authority import Pair
from server.service.config import load_config
from server.service.processes import is_healthy
from simulations.box.making import make_box
from simulations.box.wanted import Box, Wanted
from simulations.processes import end, is_alive, processes_of
from simulations.progress import Silent

__all__ = ["Blow", "Chaos", "Kind", "Strike", "chaos", "strikes_of"]

MARKER = "COREFLEET_TEST_CHAOS"
LOOK_S = 0.2
# To the next sign; slowest are a keeper's delay, a minute after many blows, and the start of a run.
LIMIT_S = 240.0
END_S = 120.0
GONE_S = 20.0
ASK_S = 2.0
LONGEST_PAUSE_S = 2.0
"""Below the time that a device takes to answer, so that most blows fall into an open round."""


class Kind(str, Enum):
    """A process of the server that is killed."""

    superlink = "superlink"
    superexec = "superexec"
    service = "service"
    control = "control"


@dataclass(frozen=True)
class Strike:
    """A blow that is to come.

    Args:
        kinds: What is killed, at once.
        round: In no earlier round than this one.
        after: Updates of its round that have to be there.
        pause_s: What is let pass then, seconds.
    """

    kinds: tuple[Kind, ...]
    round: int
    after: int
    pause_s: float


@dataclass(frozen=True)
class Blow:
    """A strike that was carried out.

    Args:
        strike: Which.
        round: The round that was open.
        accepted: Updates of it that were there.
        pids: What was killed.
        healed_s: Seconds until each kind gave a sign of life again.
    """

    strike: Strike
    round: int
    accepted: int
    pids: frozenset[int]
    healed_s: Mapping[Kind, float]


def strikes_of(targets: Sequence[tuple[Kind, ...]], devices: int, seed: int) -> list[Strike]:
    """Return a strike for each target, one a round, in an order and at points that are drawn."""
    draw = Random(seed)
    order = list(targets)
    draw.shuffle(order)
    return [
        Strike(kinds, number, draw.randrange(devices), draw.uniform(0.0, LONGEST_PAUSE_S))
        for number, kinds in enumerate(order, 1)
    ]


@dataclass
class Chaos:
    """A box that runs.

    Args:
        box: Its files.
        names: Of its devices.
        registry: Of its server.
        process: ``fleet up``.
        mark: Marks all of its processes.
        trust: Credentials of an operator.
    """

    box: Box
    names: tuple[str, ...]
    registry: Registry
    process: subprocess.Popen[bytes]
    mark: str
    trust: grpc.ChannelCredentials
    _paced: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        config = load_config(self.box.server)
        self._superlink, self._control = config.superlink_address, config.control.listen

    def logs(self) -> str:
        """Return the ends of what the box and its server printed."""
        paths = [*self.box.path.glob("log/*.log"), *self.box.server.path.glob("log/*.log")]
        return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in sorted(paths))

    def processes(self) -> set[int]:
        """Return the pids of all live processes of the box."""
        return processes_of(self.mark, MARKER)

    def until(self, true: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        """Look until something is so; return it."""
        deadline = time.monotonic() + limit_s
        while not (found := true()):
            assert self.process.poll() is None, f"the box has ended\n{self.logs()}"
            assert time.monotonic() < deadline, f"not within {limit_s:g} s\n{self.logs()}"
            self._paced.wait(LOOK_S)
        return found

    def released(self, rounds: int) -> bool:
        """Tell whether so many rounds are over."""
        return self.registry.releases.next_number() > rounds

    def pids(self) -> dict[Kind, set[int]]:
        """Return the live processes of each kind."""
        found: dict[Kind, set[int]] = {kind: set() for kind in Kind}
        for pid in self.processes():
            if (kind := self._kind_of(_words(pid))) is not None and is_alive(pid):
                found[kind].add(pid)
        return found

    def _kind_of(self, words: list[str]) -> Kind | None:
        names = {Path(word).name for word in words[:2]}
        if "flower-superlink" in names:
            return Kind.superlink
        # A device's SuperNode has a SuperExec too, which serves another address.
        if "flower-superexec" in names and self._superlink in words:
            return Kind.superexec
        if "flwr-serverapp" in names:
            return Kind.service
        return Kind.control if "server.control" in words else None

    def carry_out(self, strike: Strike) -> Blow:
        """Wait for a strike's point, kill, and wait until all is back."""
        found = self.until(lambda: self._reached(strike))
        self._paced.wait(strike.pause_s)
        # A round that has closed meanwhile makes room for the next one.
        found = self._open() or self.until(self._open)
        before = self.until(self._whole)
        pids = {pid for kind in strike.kinds for pid in before[kind]}
        killed_at, wall = time.monotonic(), time.time()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        healed = self._healed(frozenset(pids), killed_at, wall)
        row = found.row
        return Blow(strike, row.round, len(found.updates), frozenset(pids), healed)

    def _whole(self) -> dict[Kind, set[int]] | None:
        """Return the processes of each kind, if there are some: a SuperExec takes its app along."""
        found = self.pids()
        return found if all(found.values()) else None

    def _open(self) -> Any:
        return self.registry.open_round()

    def _reached(self, strike: Strike) -> Any:
        found = self._open()
        if found is None or found.row.round < strike.round:
            return None
        return found if len(found.updates) >= strike.after else None

    def _healed(self, pids: frozenset[int], killed_at: float, wall: float) -> dict[Kind, float]:
        """Wait for a sign of life of each kind; return how long each took, seconds."""
        healed: dict[Kind, float] = {}
        # A service that lives on works again only when the SuperLink does.
        works_since = wall

        def back() -> bool:
            nonlocal works_since
            live = self.pids()
            for kind in (kind for kind in Kind if kind not in healed):
                if live[kind] - pids and self._lives(kind, live[kind] - pids, works_since):
                    healed[kind] = time.monotonic() - killed_at
                    if kind is Kind.superlink:
                        works_since = time.time()
            return len(healed) == len(Kind)

        self.until(back)
        return healed

    def _lives(self, kind: Kind, pids: set[int], since: float) -> bool:
        """Tell whether a kind with these live processes has given a sign since then."""
        if kind is Kind.superlink:
            return is_healthy(f"https://{self._superlink}/health", self.box.server.authority)
        if kind is Kind.control:
            return self.control_serves()
        if kind is Kind.superexec:
            return True  # nobody can ask it; that the service comes back is its sign
        beat = self.registry.observations.heartbeat()
        return beat is not None and beat.pid in pids and beat.alive_at_s > since

    def control_serves(self) -> bool:
        """Tell whether the control API says that it is healthy."""
        with grpc.secure_channel(self._control, self.trust) as channel:
            try:
                found = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=ASK_S
                )
            except grpc.RpcError:
                return False
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)

    def commands(self) -> list[str]:
        """Return the command lines of all live processes of the box."""
        return [f"{pid}: {' '.join(_words(pid))}" for pid in self.processes()]

    def are_gone(self) -> bool:
        """Wait until no process is left; what Flower started itself looks for its parent."""
        deadline = time.monotonic() + GONE_S
        while self.processes() and time.monotonic() < deadline:
            self._paced.wait(LOOK_S)
        return not self.processes()

    def leave(self) -> int:
        """Wait until the box has ended by itself; return its exit code."""
        return self.process.wait(LIMIT_S)

    def stop(self) -> int:
        """Stop the box as Ctrl-C does; return its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(END_S)


@contextlib.contextmanager
def chaos(wanted: Wanted, words: Sequence[str]) -> Iterator[Chaos]:
    """Run a box of these devices; nothing of it outlives the block.

    Args:
        wanted: What it is.
        words: The same, as ``fleet up`` takes it.
    """
    mark = uuid.uuid4().hex
    # Sockets have short paths, and pytest's folders are deep.
    box = Box(Path("/tmp") / f"chaos-{mark[:8]}")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, box.path, ignore_errors=True)
        now = datetime.now(timezone.utc)
        names = make_box(wanted, box, Silent(), now)
        place = box.server.path / "registry.sqlite"
        registry = stack.enter_context(open_registry(place, clock=time.time))
        program = str(Path(sys.executable).with_name("fleet"))
        log = stack.enter_context((box.path / "up.log").open("wb"))
        stack.callback(end, mark, variable=MARKER)
        process = subprocess.Popen(
            [program, "up", *words, "--folder", str(box.path), "--format", "json"],
            env={**os.environ, MARKER: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stack.callback(process.wait, END_S)
        stack.callback(end, mark, variable=MARKER)
        yield Chaos(box, names, registry, process, mark, _operator(box, now))


def _words(pid: int) -> list[str]:
    """Return a process's command line; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def _operator(box: Box, now: datetime) -> grpc.ChannelCredentials:
    root = box.server.authority.read_bytes()
    own = issue(Pair(root, box.server.authority_key.read_bytes()), "chaos", Role.viewer, now)
    return grpc.ssl_channel_credentials(root, own.key, own.certificate)
