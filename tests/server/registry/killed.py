"""Run as a process: a registry whose writer is killed at every statement, one after the other.

It forks a child for each statement, so that the interpreter starts once. The child works on a fresh
registry, reports what was acknowledged through a pipe, and dies by SIGKILL just before its n-th
statement; the parent then opens the registry, holds it to the acknowledgements, and finishes the
round as a coordinator that starts again does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fleet.federate.rule import read_rule
from server.registry import Registry, database, open_registry
from server.registry.records import RoundState
from server.registry.replay import readmitted
from server.rules.memory import Memory
from tests.server.registry.filled import (
    COORDINATOR,
    DEVICES,
    FIRST,
    LAYOUT,
    OPERATOR,
    Clock,
    aggregate,
    answer,
    filled,
    opened,
    plan_from,
)

Ack = Callable[[str], None]
DONE, BROKEN = 0, 1
PLAN = plan_from(FIRST, 1)
SPEC = read_rule("momentum:0.5")
MEMORY = Memory.of(SPEC.text, 1, {"momentum": np.arange(LAYOUT.size) / 3})
RELEASE = replace(
    aggregate(FIRST, PLAN, [answer(PLAN, device)[0] for device in DEVICES]),
    provenance={"rule": {**SPEC.record, "memory": MEMORY.digest}},
)


def work(registry: Registry, acknowledge: Ack) -> None:
    """Run a round and change a device; say so after each write."""
    acknowledge("opened the registry")
    opened(registry)
    acknowledge("round")
    for device in DEVICES:
        registry.rounds.accept(1, *answer(PLAN, device), actor=COORDINATOR)
        acknowledge(device)
    registry.rounds.release(1, RELEASE, memory=MEMORY, actor=COORDINATOR, key="close")
    acknowledge("release")
    registry.devices.revoke("ada", why="lost", actor=OPERATOR, key="revoke")
    acknowledge("revoked")


def check(registry: Registry, acknowledged: list[str]) -> None:
    """Hold a reopened registry to what was acknowledged; more may be there, halves may not."""
    audit = registry.audit.rows()
    assert registry.audit.verify().seq == len(audit)
    rounds = registry.rounds.all()
    assert len(rounds) <= 1
    assert rounds or "round" not in acknowledged
    releases = registry.releases.all()
    released = bool(rounds) and rounds[0].state is RoundState.released
    assert len(releases) == 1 + released
    assert released or "release" not in acknowledged
    if released:
        assert rounds[0].release == 1
        assert registry.replay(1).release.digest == releases[1].digest == RELEASE.digest
        assert registry.releases.memory(1, SPEC).digest == MEMORY.digest
        current = registry.releases.current()
        assert current is not None
        assert current.number == 1
    updates = registry.rounds.updates(1) if rounds else ()
    there = [update.device for update in updates]
    assert len(set(there)) == len(there)
    assert set(there) >= set(acknowledged) & set(DEVICES)
    assert sorted(row.detail["device"] for row in audit if row.verb == "update.accept") == there
    gone = registry.devices.get("ada").revoked is not None
    assert gone or "revoked" not in acknowledged
    assert gone == (audit[-1].verb == "device.revoke")


def resume(registry: Registry) -> None:
    """Go on from whatever is there to the end of the round; all of it may be there already."""
    if not registry.rounds.all():
        opened(registry)
    found = registry.open_round()
    if found is not None:
        for device in found.unanswered:
            registry.rounds.accept(1, *answer(PLAN, device), actor=COORDINATOR)
        found = registry.open_round()
        assert found is not None
        admitted = [readmitted(each, found.row, LAYOUT) for each in found.updates]
        release = aggregate(FIRST, PLAN, admitted)
        assert release.digest == RELEASE.digest
    registry.rounds.release(1, RELEASE, memory=MEMORY, actor=COORDINATOR, key="close")
    assert registry.releases.memory(1, SPEC).digest == MEMORY.digest
    registry.devices.revoke("ada", why="lost", actor=OPERATOR, key="revoke")
    verbs = [row.verb for row in registry.audit.rows()]
    for verb, times in (("round.open", 1), ("update.accept", 3), ("round.release", 1)):
        assert verbs.count(verb) == times, verbs
    assert verbs.count("device.revoke") == 1
    assert registry.replay(1).same


def die_before(statement: int) -> None:
    """Kill this process just before the n-th statement of any connection made from now on."""
    left = [statement]

    def count(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    connected = database._connected

    def counted(path: Path, as_found: bool) -> sqlite3.Connection:
        connection = connected(path, as_found)
        connection.set_trace_callback(count)
        return connection

    database._connected = counted


def forked(path: Path, statement: int, working: bool) -> tuple[int, list[str]]:
    """Work in a child process; returns how it ended, and what was acknowledged before."""
    mine, theirs = os.pipe()
    process = os.fork()
    if not process:
        os.close(mine)
        code = BROKEN
        try:
            die_before(statement)
            with open_registry(path, clock=Clock()) as registry:
                if working:
                    work(registry, lambda text: void(os.write(theirs, text.encode() + b"\n")))
            code = DONE
        finally:
            os._exit(code)
    os.close(theirs)
    with open(mine, encoding="utf-8") as acknowledgements:
        acknowledged = acknowledgements.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), acknowledged


def void(_: object) -> None:
    return None


def main(kind: str, folder: Path, step: int) -> None:
    """Kill at every ``step``-th statement."""
    ends: list[int] = []
    template = folder / "template.sqlite"
    with open_registry(template, clock=Clock()) as registry:
        filled(registry)
    while DONE not in ends:
        path = folder / str(len(ends)) / "registry.sqlite"
        path.parent.mkdir()
        if kind == "working":
            shutil.copyfile(template, path)
        end, acknowledged = forked(path, step * len(ends), kind == "working")
        assert end in (DONE, -signal.SIGKILL), end
        with open_registry(path, clock=Clock()) as registry:
            if kind == "working":
                check(registry, acknowledged)
                resume(registry)
            else:
                resume(filled(registry))
        shutil.rmtree(path.parent)
        ends.append(end)
    print(json.dumps({"ends": ends, "acknowledged": acknowledged}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
