"""Run as a process: guarded trainings with pseudo-labels, killed at one effect after the other.

    python -m tests.clients.agent.pseudo.cut_off_with TEMPLATE FOLDER STRIDE [FIRST]

TEMPLATE is a device with labelled windows of one person and windows without a label of another. The
child trains for two plans that ask for every guard, with labels that it gives windows itself, then
forgets the other person; it is killed before the n-th SQL statement, write, fsync, rename or
removal. What it leaves must be whole, and end where a device ends that was never killed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from clients.agent.answering.between import space_of
from clients.agent.answering.packing import pack_update, unpack_fisher
from clients.agent.answering.world import Cadence
from clients.agent.private.removing import forget
from clients.agent.pseudo.kept import KEPT, kept_of
from fleet.adapt.digest import digest_json
from tests.clients.agent.answering.cut_off import cut_at, effects_of, killed
from tests.clients.agent.answering.devices import Device, Turned, plan_of, train_message
from tests.clients.agent.answering.life import Ack
from tests.clients.agent.pseudo.unlabelled import guessing
from tests.clients.agent.serving.factories import chain_of

EVERY_STEP = Cadence(checkpoint_s=0.0)
FORGOTTEN = "ben"
ASKED = {"anchor": 0.3, "ewc": 2.0, "distil": 0.7, "epochs": 1}


def fisher_of(device: Device) -> str:
    release = chain_of(device.serving.held.base, 1, step=0.02)[1]
    kept = device.store.fishers.get(space_of(plan_of(release)))
    return "" if kept is None else unpack_fisher(kept[0]).digest


def trained(state: Path, acknowledge: Ack) -> None:
    with guessing(state, Turned().world(cadence=EVERY_STEP)) as device:
        for release in chain_of(device.serving.held.base, 2, step=0.02)[1:]:
            update = pack_update(device.ask("train", train_message(release, **ASKED)))
            acknowledge(f"trained {digest_json(update.hex())}")


def lived(state: Path, acknowledge: Ack) -> None:
    trained(state, acknowledge)
    with guessing(state, Turned().world()) as device:
        forget(state, device.store, FORGOTTEN)
    acknowledge("forgotten")


def ends(state: Path) -> tuple[list[str], str, object]:
    """Live on undisturbed; return what the device says and holds then."""
    told: list[str] = []
    trained(state, told.append)
    with guessing(state, Turned().world()) as device:
        assert device.store.checkpoints.plan() is None
        return told, fisher_of(device), kept_of(device.store)


def check_after(
    state: Path, told: list[str], end: tuple[list[str], str, object], steps: Counter[str]
) -> None:
    """Hold a device that was killed to its word, then to where an undisturbed one ends."""
    with guessing(state, Turned().world()) as device:
        assert device.store.notices == ()
        gone = bool(device.store.windows.unknown([FORGOTTEN]))
        if gone:  # and nothing that was made of their windows is left
            assert fisher_of(device) == ""
            assert device.store.state.get(KEPT) is None
            assert device.store.outbox.waiting() == ()
            assert device.store.checkpoints.plan() is None
    assert gone or "forgotten" not in told
    if not gone:
        assert [one for one in told if one.startswith("trained")] == end[0][: len(told)]
        assert ends(state) == end
        with guessing(state, Turned().world()) as device:
            starts = [one for one in device.store.journal.entries() if one.event == "started"]
            steps.update("resumed" for one in starts if one.detail["from_step"])
            steps.update("begun" for one in starts if not one.detail["from_step"])
    steps["gone"] += gone


def every(template: Path, folder: Path, stride: int, first: int = 1) -> dict[str, int]:
    """Kill at every ``stride``-th effect; return how many there were, and what came of it."""
    states = [Path(shutil.copytree(template, folder / name)) for name in ("ended", "unbroken")]
    end = ends(states[0])
    assert end[1]
    assert end[2] is not None
    steps: Counter[str] = Counter()
    work, check = partial(killed, lived), partial(check_after, end=end, steps=steps)
    effects = effects_of(states[1], work)
    kills = range(first, effects + 1, stride)
    cut_at(template, folder, kills, work, check)
    return {"effects": effects, "kills": len(kills), **steps}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(every(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
