"""Run as a process: an agent's whole life, cut off or refused at one effect after the other.

    python -m tests.clients.agent.answering.cut_off FOLDER KIND=STRIDE …

It forks a child for each effect, so that the interpreter starts once. The child works on a copy of
one fresh device and reports what was acknowledged through a pipe; then the parent starts the agent
on what is left and holds it to that, and to where an unbroken life ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fleet.errors import FleetError
from tests.clients.agent.answering.asking import Fleet
from tests.clients.agent.answering.disturbed import Killed, Refused
from tests.clients.agent.answering.life import (
    Ack,
    Life,
    check_kept,
    check_serves,
    oracle,
    prepared,
    snapshot,
    update_of,
)

KINDS: dict[str, tuple[str, bool]] = {
    "full-once": ("full", True),
    "full": ("full", False),
    "read-only": ("read-only", False),
    "limited": ("limited", False),
}
"""How a disk fails, and whether only once."""
Work = Callable[[Path, int, Ack], None]
"""Work on a device until its n-th effect, from 1 (0: to its end); say last how many there were."""


def forked(work: Callable[[Ack], None]) -> tuple[int, list[str]]:
    """Work in a child process; returns how it ended, and what was acknowledged before."""
    mine, theirs = os.pipe()
    process = os.fork()
    if not process:
        os.close(mine)
        code = 1
        try:
            work(lambda text: _void(os.write(theirs, text.encode() + b"\n")))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(theirs)
    with open(mine, encoding="utf-8") as acknowledgements:
        acknowledged = acknowledgements.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), acknowledged


def killed(live: Callable[[Path, Ack], None], folder: Path, at: int, acknowledge: Ack) -> None:
    """Live until the n-th effect; a life that comes through says how many there were."""
    cut = Killed(at)
    cut.hook(pytest.MonkeyPatch())
    live(folder, acknowledge)
    acknowledge(f"effects {cut.count}")


def effects_of(folder: Path, work: Work) -> int:
    """Work to the end on a device of its own; return how many effects that has."""
    end, acknowledged = forked(partial(work, folder, 0))
    assert end == 0, acknowledged
    return int(acknowledged[-1].split()[1])


def cut_at(
    template: Path,
    folder: Path,
    points: range,
    work: Work,
    check: Callable[[Path, list[str]], object],
    end: int = -signal.SIGKILL,
) -> None:
    """Cut work off at one effect after the other, each time on a new copy of a device.

    Args:
        template: The device.
        folder: Where its copies go, each named by the number of the effect.
        points: Numbers of the effects; it stops behind the last that there is.
        work: What is cut off, in a child process.
        check: Holds a copy to its law, given what was acknowledged before.
        end: How the child ends.
    """
    for at in points:
        place = Path(shutil.copytree(template, folder / str(at)))
        code, acknowledged = forked(partial(work, place, at))
        assert code == end, (place, code, acknowledged)
        try:
            check(place, acknowledged)
        except BaseException:
            print(f"{place}, of {points.stop - 1}, after {acknowledged}", file=sys.stderr)
            raise
        shutil.rmtree(place)


def refused(fleet: Fleet, kind: str, folder: Path, at: int, acknowledge: Ack) -> None:
    """Live while the disk fails, heal it, and do everything again without a restart."""
    how, once = KINDS[kind]
    disk = Refused(how, at, once=once)
    disk.hook(pytest.MonkeyPatch())
    said: list[str] = []

    def both(text: str) -> None:
        said.append(text)
        acknowledge(text)

    life = Life(folder, fleet, both)
    for step in life.steps():
        try:
            step()
        except FleetError as error:
            acknowledge(f"refused {step.__name__} {error.code}")
            if error.code not in disk.codes:
                raise
            if step in life.own():  # there is nothing to train on yet
                break
        check_serves(folder, fleet, said)
    if life.opened:  # whatever the disk refuses, the agent starts, serves and says how it is
        life.start()
        life.status()
    check_serves(folder, fleet, said)
    count = disk.count
    disk.heal()
    with life:
        for step in life.steps():
            step()
    acknowledge(f"effects {count}")


def check_after(
    folder: Path, fleet: Fleet, acknowledged: list[str], expected: Mapping[str, Any]
) -> str:
    """Start again on what is left, live on, and end where an unbroken life ends.

    Returns:
        Digest of what the round releases.
    """
    check_kept(folder, acknowledged)
    check_serves(folder, fleet, acknowledged)
    again: list[str] = []
    Life(folder, fleet, again.append).live()
    found = snapshot(folder, fleet)
    if any(one.split()[0] in ("refused", "kept") for one in acknowledged):
        # It went to release 2 without ever having served release 1.
        found = {**found, **{name: expected[name] for name in ("last-good", "kept")}}
    assert found == expected, _difference(found, expected)
    answers = [one for one in (*acknowledged, *again) if one.startswith("answered")]
    assert set(answers) == {f"answered {expected['update']}"}
    # Whoever was answered before and asked again has the same bytes twice, which count once.
    return fleet.released_with([update_of(folder, fleet)] * len(answers))


def every(folder: Path, fleet: Fleet, kind: str, stride: int) -> dict[str, Any]:
    """Cut off at every ``stride``-th effect; return what happened."""
    template = folder / "template"

    def live(place: Path, acknowledge: Ack) -> None:
        Life(place, fleet, acknowledge).live()

    def check(place: Path, acknowledged: list[str]) -> None:
        assert check_after(place, fleet, acknowledged, expected) == release
        for point in _points(kind, acknowledged):
            points[point] = points.get(point, 0) + 1

    work = partial(killed, live) if kind == "killed" else partial(refused, fleet, kind)
    unbroken = Path(shutil.copytree(template, folder / kind / "unbroken"))
    effects = effects_of(unbroken, work)
    expected = snapshot(unbroken, fleet)
    assert expected["update"] == oracle(unbroken, fleet)
    release = fleet.released_with([update_of(unbroken, fleet)])
    points: dict[str, int] = {}
    cuts = range(1, effects + 1, stride)
    end = -signal.SIGKILL if kind == "killed" else 0
    cut_at(template, folder / kind, cuts, work, check, end)
    return {"effects": effects, "cuts": len(cuts), "points": points}


def _points(kind: str, acknowledged: list[str]) -> list[str]:
    """Say where a life was cut off: behind what, or in which steps it was refused."""
    if kind == "killed":
        return [acknowledged[-1] if acknowledged else "nothing"]
    return [one.removeprefix("refused ") for one in acknowledged if one.startswith("refused")]


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (found[name], expected[name]) for name in expected if found[name] != expected[name]
    }


def _void(_: object) -> None:
    return None


def main(folder: Path, wanted: list[str]) -> None:
    """Do what is wanted, e.g. ``killed=1``; print what happened as JSON."""
    torch.set_num_threads(1)
    fleet = Fleet()
    prepared(folder / "template", fleet)
    asked = [one.partition("=") for one in wanted]
    print(json.dumps({kind: every(folder, fleet, kind, int(step)) for kind, _, step in asked}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
