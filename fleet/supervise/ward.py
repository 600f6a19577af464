"""One child under supervision: it carries out what its course says, and tells of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fleet.errors import FleetError
from fleet.supervise.child import Child, Exit
from fleet.supervise.output import BoundedLog, Lines, Tail
from fleet.supervise.record import ProcessRecord
from fleet.supervise.restarts import Asked, Backoff, Course, Ended, Phase, Started, step
from fleet.supervise.told import Tell, Told

__all__ = ["REAP_LIMIT_S", "Gate", "Sight", "Spec", "Ward", "Wear", "World"]

# How often it is asked whether a child that runs is worn.
WEAR_EVERY_S = 60.0
# What a broken driver holds cannot be killed; nobody waits longer for it than this.
REAP_LIMIT_S = 10.0
# After a child has ended its pipe holds at most its capacity, unless somebody still writes to it.
LAST_READS = 32
FLOWER_CODE = re.compile(r"Exit Code: ([0-9]{1,4})\b")


@dataclass(frozen=True)
class World:
    """What the rules are given: clocks and chance.

    Args:
        clock: Monotonic time, seconds.
        now: Wall time with its zone.
        draw: Chance, uniform in [0, 1).
    """

    clock: Callable[[], float]
    now: Callable[[], datetime]
    draw: Callable[[], float]


@dataclass(frozen=True)
class Sight:
    """What a look at a gate showed.

    Args:
        is_open: Whether the child may start.
        event: Name and text of an event to tell; ``None``: nothing new.
        next_s: Seconds until the next look at a closed one.
        failure: Why it will never open, which ends the whole run; ``None``: it may.
    """

    is_open: bool
    event: tuple[str, str] | None = None
    next_s: float = 0.0
    failure: FleetError | None = None


class Gate(Protocol):
    """What a child waits for before its first start: a clock that is set, a server that answers."""

    def look(self, world: World) -> Sight:
        """Look once, briefly: everything else waits meanwhile."""


class Wear(Protocol):
    """Whether a child that runs is due to be started afresh."""

    def observe(self, world: World, is_up: bool) -> str:
        """Return why it is recycled now; ``""``: it is not."""


@dataclass(frozen=True)
class Spec:
    """A process that is to be kept running.

    Args:
        name: Of the process, its log and its events, e.g. ``supernode``.
        command: Absolute program and arguments.
        environment: All of its environment.
        backoff: Its delays.
        stop_s: Seconds from SIGTERM to SIGKILL.
        wear: Makes what tells when it is recycled; ``None``: never.
        gate: Makes what its first start waits for; ``None``: nothing.
        recycled_on_hangup: Whether SIGHUP to the supervisor recycles it.
        final: Returns the error of an end after which a restart cannot help, else ``None``; given
            the end and the newest lines, newest first.
        cause: Returns why it ended when nobody asked it to, for people; given the same. ``""``:
            nothing is known beyond the exit code.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    backoff: Backoff
    stop_s: float
    wear: Callable[[], Wear] | None = None
    gate: Callable[[], Gate] | None = None
    recycled_on_hangup: bool = False
    final: Callable[[Exit, list[str]], FleetError | None] = field(default=lambda end, lines: None)
    cause: Callable[[Exit, list[str]], str] = field(default=lambda end, lines: "")


class Ward:
    """A process under supervision.

    Args:
        spec: What it is.
        logs: Folder of its log.
        log_bytes: Most bytes of the log.
        world: Clocks and chance.
        tell: Told of every event.
        hear: Given every line of its output.

    Attributes:
        failure: Why it must not be started again.
    """

    def __init__(
        self,
        spec: Spec,
        logs: Path,
        log_bytes: int,
        world: World,
        tell: Tell,
        hear: Callable[[str, str], None],
    ) -> None:
        self.spec = spec
        self.course = Course(since_s=world.clock(), due_s=world.clock())
        self.child: Child | None = None
        self.failure: FleetError | None = None
        self._world, self._tell, self._hear = world, tell, hear
        self._log = BoundedLog(logs / f"{spec.name}.log", log_bytes)
        self._lines, self._tail = Lines(), Tail()
        self._since = world.now()
        self._kill_s: float | None = None
        self._wear = spec.wear() if spec.wear is not None else None
        self._gate = spec.gate() if spec.gate is not None else None
        self._gate_s = world.clock()
        self.leaving = False

    @property
    def output(self) -> int | None:
        """Descriptor to wait on for output; ``None``: nothing will come."""
        return None if self.child is None or self.child.output < 0 else self.child.output

    def advance(self) -> None:
        """Do whatever is due."""
        self._notice_the_end()
        now_s = self._world.clock()
        if self.child is not None and self._kill_s is not None and now_s >= self._kill_s:
            self._kill_s = None
            self._say("process.killed", f"did not end within {self.spec.stop_s:g} s, killed")
            self.child.kill()
        self._observe_wear()
        wanted = not self.leaving and self.failure is None
        if wanted and self.course.may_start(now_s) and self._gate_is_open(now_s):
            self._start()

    def recycle(self, why: str) -> None:
        """Have it end, to be started afresh; one that waits starts afresh anyhow."""
        if self.child is None or self.course.phase is not Phase.UP:
            return
        self._move(Asked())
        self._say("process.recycled", f"recycled: {why}", why=why)
        self._ask_to_end()

    def stop(self) -> None:
        """Have it end for good; a second time changes nothing."""
        self.leaving = True
        if self.child is not None and self.course.phase is Phase.UP:
            self._move(Asked(again=False))
            self._ask_to_end()

    def kill(self) -> None:
        """End it and what it started, at once."""
        self.leaving = True
        if self.child is not None:
            self.child.kill()

    def reap(self, limit_s: float = REAP_LIMIT_S) -> None:
        """Wait for the end of one that was killed; one that does not end in time stays its child.

        Args:
            limit_s: Most seconds to wait.
        """
        if self.child is not None:
            until = time.monotonic() + limit_s
            while (end := self.child.ended()) is None and time.monotonic() < until:
                time.sleep(0.01)
            if end is None:
                pid = self.child.pid
                self._say("process.stuck", f"was killed and is still there, pid {pid}", pid=pid)
            else:
                self._notice_the_end()
        self._log.close()

    def next_s(self, now_s: float) -> float:
        """Return the seconds until something is due."""
        times = [now_s + WEAR_EVERY_S]
        if self.child is not None:
            times += [] if self._kill_s is None else [self._kill_s]
        elif not self.leaving:
            times.append(self.course.due_s if self._gate is None else self._gate_s)
        return max(0.0, min(times) - now_s)

    def pump(self) -> None:
        """Take what it has printed."""
        if self.child is None:
            return
        chunk = self.child.read()
        if chunk == b"":
            self.child.output = -1
        self._take(self._lines.take(chunk or b""))

    def record(self) -> ProcessRecord:
        """Return what the supervisor writes down of it."""
        course, child = self.course, self.child
        return ProcessRecord(
            phase=course.phase.value,
            pid=child.pid if child else 0,
            ticks=child.ticks if child else 0,
            since=self._since,
            restarts=course.restarts,
            recycles=course.recycles,
            reasons=course.reasons,
        )

    def _start(self) -> None:
        self._tail.clear()
        try:
            self.child = Child(self.spec.command, self.spec.environment)
        except OSError as error:
            self._ended(f"cannot be started ({error.strerror})")
            return
        self._move(Started())
        self._say("process.started", f"started, pid {self.child.pid}", pid=self.child.pid)

    def _ask_to_end(self) -> None:
        assert self.child is not None
        self._kill_s = self._world.clock() + self.spec.stop_s
        self.child.ask_to_end()

    def _notice_the_end(self) -> None:
        child = self.child
        end = child.ended() if child is not None else None
        if child is None or end is None:
            return
        self._take(line for chunk in _last(child) for line in self._lines.take(chunk))
        self._take(self._lines.rest())
        child.close()
        self.child, self._kill_s = None, None
        lines = self._tail.newest_first()
        reason = end.reason(_flower_code(lines))
        if self.course.phase is Phase.UP:
            self.failure = self.spec.final(end, lines)
            reason = _unasked(reason, end, self.spec.cause(end, lines))
        self._ended(reason)

    def _ended(self, reason: str) -> None:
        asked = self.course.phase is Phase.STOPPING
        self._move(Ended(reason, self._world.draw()))
        if self.leaving or self.failure is not None:
            self._say("process.ended", f"ended, {reason}", reason=reason)
        elif not asked:
            delay_s = round(self.course.due_s - self.course.since_s, 3)
            text = f"restarts in {delay_s:.1f} s because {reason}"
            self._say("process.ended", text, reason=reason, delay_s=delay_s)

    def _move(self, event: Started | Asked | Ended) -> None:
        self.course = step(self.course, event, self._world.clock(), self.spec.backoff)
        self._since = self._world.now()

    def _observe_wear(self) -> None:
        if self._wear is None:
            return
        is_up = self.course.phase is Phase.UP and not self.leaving
        why = self._wear.observe(self._world, is_up)
        if why:
            self.recycle(why)

    def _gate_is_open(self, now_s: float) -> bool:
        if self._gate is None:
            return True
        if now_s < self._gate_s:
            return False
        sight = self._gate.look(self._world)
        if sight.event is not None:
            self._say(*sight.event)
        self._gate_s = self._world.clock() + sight.next_s
        self.failure = sight.failure
        if sight.is_open:
            self._gate = None
        return sight.is_open

    def _take(self, lines: Iterator[str] | list[str]) -> None:
        for line in lines:
            self._tail.add(line)
            self._log.write(self._world.now(), line)
            self._hear(self.spec.name, line)

    def _say(self, event: str, text: str, **data: str | float) -> None:
        self._tell(Told(event, text, self.spec.name, data))


def _last(child: Child) -> Iterator[bytes]:
    for _ in range(LAST_READS):
        chunk = child.read() if child.output >= 0 else b""
        if not chunk:
            return
        yield chunk


def _unasked(reason: str, end: Exit, cause: str) -> str:
    # "exit code 0" reads as success, and it was to go on.
    reason = "it ended by itself (exit code 0)" if end.status == 0 else reason
    return f"{reason}: {cause}" if cause else reason


def _flower_code(lines: list[str]) -> int | None:
    found = (FLOWER_CODE.search(line) for line in lines)
    return next((int(each[1]) for each in found if each), None)
