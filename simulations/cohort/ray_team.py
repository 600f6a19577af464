"""A team of Ray actors, one per CPU of the cluster: chunks go to whoever is idle.

An actor that is lost, with its node or on its own, costs the chunk that it had, which is given to
another; every chunk is answered once. Actors are hired again at every call, so that nodes that
join take part.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from fleet.errors import FleetError
from fleet.federate.wire import Payload
from simulations.cohort.fleet import EngineLost
from simulations.cohort.packed import Answer, pack, unpack
from simulations.cohort.ray_worker import ChunkActor, Kind, Setting, software

__all__ = ["Team"]

# An actor imports PyTorch and reads the data first; a busy node may take its time.
START_TIMEOUT_S = 180.0
CHUNK_TIMEOUT_S = 600.0
# Times that one chunk, or one start of an actor, is tried before a run gives up.
TRIES = 4
# Between two looks at deadlines.
LOOK_S = 1.0

Ref = Any


@dataclass(frozen=True, eq=False)
class _Member:
    handle: Any
    node: str = ""
    node_id: str = ""


@dataclass(frozen=True, eq=False)
class _Duty:
    """What an actor does now: a chunk, or getting ready."""

    member: _Member
    chunk: int | None
    since: float

    def left_s(self) -> float:
        """Return the seconds until it is overdue; a moment at least, to read what is there."""
        limit = START_TIMEOUT_S if self.chunk is None else CHUNK_TIMEOUT_S
        return max(LOOK_S, self.since + limit - time.monotonic())


class _Call:
    """The chunks of one message, and what has come of them."""

    def __init__(self, kind: Kind, chunks: Sequence[Sequence[int]]) -> None:
        self.kind = kind
        self.chunks = chunks
        self.waiting = deque(range(len(chunks)))
        self.found: dict[int, list[Answer]] = {}
        self.tries: Counter[int] = Counter()
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """End the call: what is under way is waited for, nothing else is begun."""
        self.error = self.error or error
        self.waiting.clear()


class Team:
    """Actors on a cluster; not for use from several threads.

    Args:
        setting: What every actor is told.
        base: Bytes of the base.
        cpus: Returns how many actors there may be now.
    """

    def __init__(self, setting: Setting, base: bytes, cpus: Callable[[], int]) -> None:
        self._setting = setting
        self._base = ray.put(base)
        self._cpus = cpus
        self._actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(ChunkActor)
        self._duties: dict[Ref, _Duty] = {}
        self._idle: list[_Member] = []
        self._failed_starts = 0
        self._message: tuple[int, Payload, Ref] | None = None

    def answer(
        self, kind: Kind, message: Payload, chunks: Sequence[Sequence[int]]
    ) -> list[list[Answer]]:
        """Answer a message for chunks, the first ones first; return their answers in order.

        Raises:
            EngineLost: ``ray-chunk`` when a chunk was lost ``TRIES`` times, ``ray-workers`` when no
                worker starts within ``START_TIMEOUT_S``, ``ray-software`` when one computes with
                other versions than the driver, or what one is missing.
            Exception: What a chunk raised for everybody.
        """
        call = _Call(kind, chunks)
        try:
            self._run(call, *self._sent(message))
        except BaseException:
            # Whoever is still at work would answer the next call.
            self.close()
            raise
        if call.error is not None:
            raise call.error
        return [call.found[index] for index in range(len(chunks))]

    def _run(self, call: _Call, number: int, reference: Ref) -> None:
        self._hire()
        idle_since = time.monotonic()
        while call.waiting or self._at_work():
            while call.waiting and self._idle:
                self._give(call, self._idle.pop(), number, reference)
            if self._at_work():
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > START_TIMEOUT_S:
                raise _no_workers(f"none was ready within {START_TIMEOUT_S:g} s")
            if not self._duties:
                self._hire()
            self._look(call)

    def members(self) -> int:
        """Return the actors that are ready or getting ready."""
        return len(self._idle) + len(self._duties)

    def nodes(self) -> set[str]:
        """Return Ray's ids of the nodes whose actors are ready."""
        busy = (duty.member for duty in self._duties.values() if duty.chunk is not None)
        return {member.node_id for member in (*self._idle, *busy)}

    def close(self) -> None:
        """End all actors, whatever they do."""
        for member in (*self._idle, *(duty.member for duty in self._duties.values())):
            ray.kill(member.handle)
        self._idle.clear()
        self._duties.clear()

    def _sent(self, message: Payload) -> tuple[int, Ref]:
        """Return a message's number and its reference; the calls of a round share it."""
        if self._message is None or self._message[1] is not message:
            number = 0 if self._message is None else self._message[0] + 1
            self._message = (number, message, ray.put(pack(message)))
        return self._message[0], self._message[2]

    def _hire(self) -> None:
        """Fill the team up, unless all that start lately fail and others work."""
        if self._failed_starts >= TRIES and self.members():
            return
        for _ in range(self._cpus() - self.members()):
            member = _Member(self._actor.remote(self._setting, [self._base]))
            self._begin(member, None, member.handle.prepare.remote())

    def _begin(self, member: _Member, chunk: int | None, reference: Ref) -> None:
        self._duties[reference] = _Duty(member, chunk, time.monotonic())

    def _at_work(self) -> bool:
        return any(duty.chunk is not None for duty in self._duties.values())

    def _give(self, call: _Call, member: _Member, number: int, message: Ref) -> None:
        chunk = call.waiting.popleft()
        call.tries[chunk] += 1
        asked = list(call.chunks[chunk])
        self._begin(member, chunk, member.handle.answer.remote(call.kind, number, [message], asked))

    def _look(self, call: _Call) -> None:
        """Wait for one answer, or for a while; then see who is overdue."""
        if not self._duties:
            time.sleep(LOOK_S)
            return
        done, _ = ray.wait(list(self._duties), num_returns=1, timeout=LOOK_S)
        for reference in done:
            duty = self._duties.pop(reference)
            try:
                # Told to be there, but a node may be lost while its answer is on its way to us.
                told = ray.get(reference, timeout=duty.left_s())
            except RayError as error:
                self._lost(call, duty, f"{type(error).__name__}: {error}")
            else:
                self._heard(call, duty, told)
        for reference, duty in list(self._duties.items()):
            late = time.monotonic() - duty.since > CHUNK_TIMEOUT_S
            if late and duty.chunk is not None:
                del self._duties[reference]
                self._lost(call, duty, f"no answer within {CHUNK_TIMEOUT_S:g} s")

    def _heard(self, call: _Call, duty: _Duty, told: Any) -> None:
        if duty.chunk is None:
            self._idle.append(_admitted(duty.member, told))
            self._failed_starts = 0
            return
        self._idle.append(duty.member)
        if isinstance(told, tuple):
            error = unpack(told)
            assert isinstance(error, Exception)
            call.fail(error)
        else:
            call.found[duty.chunk] = [unpack(each) for each in told]

    def _lost(self, call: _Call, duty: _Duty, reason: str) -> None:
        """Do without an actor; its chunk goes to another."""
        ray.kill(duty.member.handle)
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        self._idle = [each for each in self._idle if each.node_id in alive]
        if duty.chunk is None:
            self._failed_starts += 1
            if self._failed_starts >= TRIES and not self.members():
                raise _no_workers(f"{TRIES} in a row ended at their start ({_brief(reason)})")
        elif call.tries[duty.chunk] >= TRIES:
            call.fail(
                EngineLost(
                    "ray-chunk",
                    f"devices {list(call.chunks[duty.chunk])} were lost with {TRIES} workers, last "
                    f"on node {duty.member.node} ({_brief(reason)})",
                    "A worker that is ended needs more memory, or fewer workers per node.",
                )
            )
        elif call.error is None:
            call.waiting.appendleft(duty.chunk)
        self._hire()


def _admitted(member: _Member, told: dict[str, Any]) -> _Member:
    """Return a member that is ready.

    Raises:
        EngineLost: ``ray-software``, or what the worker is missing.
    """
    node = str(told["node"])
    if "error" in told:
        error = unpack(told["error"])
        assert isinstance(error, FleetError)
        raise EngineLost(error.code, f"node {node}: {error.message}", error.hint)
    wrong = [
        f"{name} {told['software'].get(name)}, here {version}"
        for name, version in software().items()
        if told["software"].get(name) != version
    ]
    if wrong:
        raise EngineLost(
            "ray-software",
            f"node {node} has other versions, which round otherwise: {'; '.join(wrong)}",
            "Install the same on every node: make install, or pip with constraints.txt.",
        )
    return _Member(member.handle, node, str(told["node_id"]))


def _no_workers(reason: str) -> EngineLost:
    return EngineLost(
        "ray-workers",
        f"no worker of the Ray cluster takes part: {reason}",
        "Each needs a free CPU, this project's packages and its data on its node.",
    )


def _brief(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if len(lines) < 2 else f"{lines[0]} … {lines[-1]}")[:300] if lines else ""
