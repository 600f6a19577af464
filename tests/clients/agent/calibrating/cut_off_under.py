"""Run as a process: a device with statistics of its own, killed at one effect after the other.

    python -m tests.clients.agent.calibrating.cut_off_under TEMPLATE FOLDER STRIDE [FIRST]

TEMPLATE is a device that serves release 1 under statistics of its own and has windows of two
people. The child takes in more windows, looks (takes them anew, serves), trains for the fleet under
them, then forgets one person; it is killed before the n-th SQL statement, write, fsync, rename or
removal. What it leaves must be whole, and end where a device ends that was never killed.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from clients.agent.answering.packing import pack_update
from clients.agent.answering.world import Cadence
from clients.agent.calibrating.kept import kept_of, there
from clients.agent.private.removing import forget
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.personal import personal_of
from fleet.adapt.digest import digest_json
from tests.clients.agent.answering.cut_off import cut_at, effects_of, killed
from tests.clients.agent.answering.devices import Turned, train_message
from tests.clients.agent.answering.life import Ack
from tests.clients.agent.calibrating.changed import add, wearing, windows_of
from tests.clients.agent.serving.factories import chain_of

EVERY_STEP = Cadence(checkpoint_s=0.0)
FORGOTTEN = "ben"


def looked(state: Path, acknowledge: Ack) -> None:
    with wearing(state, Turned().world(cadence=EVERY_STEP)) as wearer:
        add(wearer.device.store, 40, seed=8)  # again: those that are there change nothing
        acknowledge("came")
        wearer.cores.look()
        kept = kept_of(wearer.device.store)
        assert kept is not None
        acknowledge(f"looked {kept.digest}")


def trained(state: Path, acknowledge: Ack) -> None:
    with wearing(state, Turned().world(cadence=EVERY_STEP)) as wearer:
        release = chain_of(wearer.device.serving.held.base, 1, step=0.02)[1]
        update = pack_update(wearer.device.ask("train", train_message(release, epochs=1)))
        acknowledge(f"trained {digest_json(update.hex())}")


def forgotten(state: Path, acknowledge: Ack) -> None:
    with wearing(state, Turned().world()) as wearer:
        forget(state, wearer.device.store, FORGOTTEN)
        acknowledge("forgotten")


def lived(state: Path, acknowledge: Ack) -> None:
    looked(state, acknowledge)
    trained(state, acknowledge)
    forgotten(state, acknowledge)


def held(state: Path) -> tuple[str, str]:
    """Return the digests of the statistics that are kept and of what answers, both whole."""
    model = DeviceModel(state)
    model.predict(windows_of(1))
    assert model.problem == ""
    with wearing(state, Turned().world()) as wearer:
        kept, note = kept_of(wearer.device.store), personal_of(wearer.device.serving.folder)
        assert model.served.digest == wearer.release_digest
        assert model.personal == (model.digest != wearer.release_digest)
        if kept is None:  # nothing is served of what is forgotten
            assert note is None
            assert not there(wearer.device.store)
        else:
            assert FORGOTTEN in kept.people
        return "" if kept is None else kept.digest, model.digest


def ends(state: Path) -> list[str]:
    """Live on undisturbed; return what the device says and holds then."""
    told: list[str] = []
    looked(state, told.append)
    trained(state, told.append)
    return [*told[1:], *held(state)]


def check_after(
    state: Path, told: list[str], whole: tuple[set[str], set[str]], end: object
) -> None:
    """Hold a device that was killed to old or new, then to where an undisturbed one ends."""
    statistics, answers = held(state)
    assert statistics in whole[0], (statistics, told)
    assert answers in whole[1], (answers, told)
    if "forgotten" in told:
        assert statistics == ""
    if statistics:
        assert ends(state) == end
        with wearing(state, Turned().world()) as wearer:
            assert sorted(wearer.device.serving.folder.own.rglob("*.tmp")) == []


def every(template: Path, folder: Path, stride: int, first: int = 1) -> dict[str, int]:
    """Kill at every ``stride``-th effect; return how many there were, and how many kills."""
    states = [Path(shutil.copytree(template, folder / name)) for name in ("ended", "unbroken")]
    before, end = held(template), ends(states[0])
    after = held(states[0])
    assert before[0] != after[0]
    with wearing(states[0], Turned().world()) as wearer:
        release = wearer.release_digest
    assert len({release, before[1], after[1]}) == 3
    whole = {before[0], after[0], ""}, {release, before[1], after[1]}
    work, check = partial(killed, lived), partial(check_after, whole=whole, end=end)
    effects = effects_of(states[1], work)
    kills = range(first, effects + 1, stride)
    cut_at(template, folder, kills, work, check)
    return {"effects": effects, "kills": len(kills)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(every(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
