"""Run as a process: a device that moves to another base, killed or refused at each effect.

    python -m tests.clients.agent.answering.moving_cut_off FOLDER KIND=STRIDE …

The child starts the agent, is asked to serve the release of another base, which comes along, trains
there, goes back and forward again. KIND is ``killed`` (before the n-th SQL statement, write, fsync,
rename, removal or new folder) or one of ``cut_off.KINDS``, a disk that fails at a write. What is
left must be whole, one of old and new, and end in the digests of a device that was left alone.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.agent.answering.packing import pack_update
from clients.agent.answering.world import Cadence
from clients.agent.serving.inventory import verify
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.recover import recover
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, load_base
from fleet.adapt.digest import digest_json
from fleet.errors import FleetError
from fleet.federate.releases import Release
from fleet.federate.wire import BASE_MISSING, Payload
from tests.clients.agent.answering.cut_off import KINDS, cut_at, effects_of, killed
from tests.clients.agent.answering.devices import (
    Device,
    Turned,
    opened,
    release_message,
    train_message,
)
from tests.clients.agent.answering.disturbed import Refused
from tests.clients.agent.answering.life import Ack
from tests.clients.agent.answering.moving import Move, kernels_of, rebase_of, set_up_with
from tests.clients.agent.serving.factories import (
    CHANNELS,
    WINDOW,
    chain_of,
    make_base,
)

EVERY_STEP = Cadence(checkpoint_s=0.0, busy_s=0.05)
WINDOWS = np.zeros((1, CHANNELS, WINDOW))


@dataclass(frozen=True)
class Course:
    """Where a device comes from and goes to."""

    base: Base
    old: Release
    move: Move

    @property
    def plan(self) -> Payload:
        """One step of training: most of what it does is the same at every step."""
        return train_message(self.move.later, epochs=1, batch=32)

    @cached_property
    def digests(self) -> dict[int, str]:
        """What may be served, by the release's number."""
        new = {one.number: kernels_of(self.move.base, one) for one in self.move.releases}
        return {self.old.number: kernels_of(self.base, self.old), **new}


def made() -> Course:
    base = make_base()
    old = chain_of(base, 2, step=0.02)[2]
    return Course(base, old, rebase_of(base, old))


def brought(device: Device, course: Course, release: Release) -> None:
    """Ask for a release; send its base along only to a device that says that it lacks it."""
    try:
        device.ask("query.release", release_message(release))
    except FleetError as error:
        if error.code != BASE_MISSING:
            raise
        device.ask("query.release", course.move.message(release))


def steps_of(device: Device, course: Course) -> list[tuple[str, Callable[[], None]]]:
    """Return what is asked of the device, in this order; all of it may be asked again."""

    def trained() -> None:
        answers.append(device.ask("train", course.plan))

    answers: list[Payload] = []
    return [
        ("moved 3", partial(brought, device, course, course.move.release)),
        ("trained 4", trained),
        (f"back {course.old.number}", partial(brought, device, course, course.old)),
        ("forward 4", partial(brought, device, course, course.move.later)),
    ]


def lived(course: Course, state: Path, acknowledge: Ack) -> None:
    """Start as the daemon does and do all that is asked."""
    recover(Serving(state))
    with opened(state, Turned().world(cadence=EVERY_STEP)) as device:
        device.agent.finish()
        for name, step in steps_of(device, course):
            acknowledge(f"asked {name}")
            step()
            acknowledge(name)


def refused(course: Course, kind: str, state: Path, at: int, acknowledge: Ack) -> None:
    """Live while the disk fails; heal it, and do everything again without a restart."""
    how, once = KINDS[kind]
    disk = Refused(how, at, once=once)
    with opened(state, Turned().world(cadence=EVERY_STEP)) as device:
        disk.hook(pytest.MonkeyPatch())
        for name, step in steps_of(device, course):
            acknowledge(f"asked {name}")
            try:
                step()
                acknowledge(name)
            except FleetError as error:
                acknowledge(f"refused {name} {error.code}")
                # What a device cannot move to, it trains nothing on.
                if error.code not in {*disk.codes, "folder-failed", "wrong-base"}:
                    raise
            held(state, course)
        count = disk.count
        disk.heal()
        for _, step in steps_of(device, course):
            step()
    acknowledge(f"effects {count}")


def held(state: Path, course: Course) -> int:
    """Return the number of what is served: whole, of a base that is held whole, and merged so."""
    model = DeviceModel(state, retry_s=0)
    model.predict(WINDOWS)
    assert model.problem == ""
    served = model.served
    assert served.digest == course.digests[served.number]
    later = served.number > course.old.number
    assert served.base == (course.move.base.digest if later else "")
    in_use = course.move.base if later else course.base
    assert load_base(Serving(state).folder.base_in_use()).digest == in_use.digest
    assert Serving(state).held.base.digest == in_use.digest
    assert load_base(Serving(state).folder.base).digest == course.base.digest
    return served.number


def allowed(acknowledged: list[str], old: int) -> set[int]:
    """Return which releases may be served: the last that was done, or the one asked for then."""
    return set([old, *(int(one.split()[-1]) for one in acknowledged)][-2:])


def check_after(
    state: Path, acknowledged: list[str], course: Course, end: dict[str, Any], kind: str
) -> None:
    """Hold what is left to old or new; then start again, and end where a quiet device ends."""
    if kind == "killed":
        assert held(state, course) in allowed(acknowledged, course.old.number), acknowledged
        recovery = recover(Serving(state))
        assert (recovery.source, recovery.problems) == ("current", ()), recovery
        lived(course, state, lambda _: None)
    found = ends(state, course)
    assert found == end, (found, end)


def ends(state: Path, course: Course) -> dict[str, Any]:
    """Return what must not depend on how a device came there."""
    held(state, course)
    serving = Serving(state)
    assert not [check for check in verify(serving) if check.problem]
    with opened(state, Turned().world()) as device:
        update = device.ask("train", course.plan)
        assert device.serving.served is not None
        return {
            "served": device.serving.served.model_dump(),
            "update": digest_json(pack_update(update).hex()),
            "releases": serving.folder.release_names(),
            "bases": sorted(path.name for path in serving.folder.bases.glob("*")),
            "leftovers": sorted(path.name for path in state.rglob("*.tmp")),
        }


def every(folder: Path, course: Course, kind: str, stride: int) -> dict[str, Any]:
    """Cut off at every ``stride``-th effect; return how often, and behind what."""

    def check(state: Path, acknowledged: list[str]) -> None:
        check_after(state, acknowledged, course, end, kind)
        point = acknowledged[-1] if kind == "killed" and acknowledged else "nothing"
        codes = [one for one in acknowledged if one.startswith("refused")]
        for one in codes if kind != "killed" else [point]:
            points[one] = points.get(one, 0) + 1

    work = (
        partial(killed, partial(lived, course))
        if kind == "killed"
        else partial(refused, course, kind)
    )
    template = folder / "template"
    unbroken = Path(shutil.copytree(template, folder / kind / "unbroken"))
    effects = effects_of(unbroken, work)
    end, points = ends(unbroken, course), dict[str, int]()
    cuts = range(stride, effects + 1, stride)
    stop = -signal.SIGKILL if kind == "killed" else 0
    cut_at(template, folder / kind, cuts, work, check, stop)
    return {"effects": effects, "cuts": len(cuts), "points": points}


def main(folder: Path, wanted: list[str]) -> None:
    """Do what is wanted, e.g. ``killed=1``; print what happened as JSON."""
    torch.set_num_threads(1)
    course = made()
    state = set_up_with(course.base, folder / "made")
    with opened(state, Turned().world()) as device:
        device.ask("query.release", release_message(course.old))
    shutil.copytree(state, folder / "template")
    asked = [one.partition("=") for one in wanted]
    print(json.dumps({kind: every(folder, course, kind, int(step)) for kind, _, step in asked}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
