"""Run as a process: a device that learns for itself, killed at one effect after the other.

    python -m tests.clients.agent.private.cut_off TEMPLATE FOLDER STRIDE [FIRST]

TEMPLATE is a device with a private core on release 1 that has taken release 2. The child looks
(judges, serves, trains, serves again), then forgets the person; it is killed before the n-th SQL
statement, write, fsync, rename or removal. What it leaves must be whole, and end where a device
ends that was never killed.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from clients.agent.answering.world import Cadence
from clients.agent.private.removing import forget
from clients.agent.serving.model import DeviceModel
from tests.clients.agent.answering.cut_off import cut_at, effects_of, killed
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.answering.life import Ack
from tests.clients.agent.private.wearing import Wearer, worn
from tests.clients.agent.serving.factories import CHANNELS, WINDOW

EVERY_STEP = Cadence(checkpoint_s=0.0)
WINDOWS = np.zeros((1, CHANNELS, WINDOW))


def looked(state: Path, acknowledge: Ack) -> None:
    with worn(state, Turned().world(cadence=EVERY_STEP)) as wearer:
        word = wearer.cores.look()
        assert word in ("trained", "current"), word
        acknowledge(f"looked {wearer.row.digest}")


def forgotten(state: Path, acknowledge: Ack) -> None:
    with worn(state, Turned().world()) as wearer:
        forget(state, wearer.device.store, "ada")
        acknowledge("forgotten")


def lived(state: Path, acknowledge: Ack) -> None:
    looked(state, acknowledge)
    forgotten(state, acknowledge)


def held(state: Path) -> tuple[str, str]:
    """Return the digests of the core that is kept and of what answers, both whole."""
    model = DeviceModel(state)
    model.predict(WINDOWS)
    assert model.problem == ""
    with worn(state, Turned().world()) as wearer:
        row = wearer.device.store.personal.get()
        assert model.served.digest == wearer.release_digest
        assert model.personal == (model.digest != wearer.release_digest)
        return "" if row is None else row.digest, model.digest


def check_after(state: Path, acknowledged: list[str], whole: dict[str, set[str]], end: str) -> None:
    """Hold a device that was killed to old or new, then to where an undisturbed one ends."""
    core, answers = held(state)
    assert core in whole["cores"], (core, acknowledged)
    assert answers in whole["answers"], (answers, acknowledged)
    if "forgotten" in acknowledged:
        assert core == ""
    if core == "":  # nothing of what is forgotten answers, also where the kill came in between
        assert {answers} == whole["release"]
        return
    looked(state, lambda _: None)
    with worn(state, Turned().world()) as wearer:
        assert (wearer.row.digest, wearer.model().digest) == (end, end_of(wearer))
        assert sorted(wearer.device.serving.folder.own.rglob("*.tmp")) == []


def end_of(wearer: Wearer) -> str:
    [kernels] = wearer.device.serving.folder.own.glob("*.safetensors")
    model = wearer.model()
    assert model._answering.own is not None
    assert kernels.stem == model._answering.own.name
    return model.digest


def every(template: Path, folder: Path, stride: int, first: int = 1) -> dict[str, int]:
    """Kill at every ``stride``-th effect; return how many there were, and how many kills."""
    states = [Path(shutil.copytree(template, folder / name)) for name in ("looked", "unbroken")]
    before = held(template)
    looked(states[0], lambda _: None)
    after = held(states[0])
    assert before[0] != after[0]
    with worn(states[0], Turned().world()) as wearer:
        release = wearer.release_digest
        carried = carried_digest(template, folder)
    assert len({release, after[1], carried}) == 3
    whole = {
        "cores": {before[0], after[0], ""},
        "answers": {release, carried, after[1]},
        "release": {release},
    }
    work, check = partial(killed, lived), partial(check_after, whole=whole, end=after[0])
    effects = effects_of(states[1], work)
    kills = range(first, effects + 1, stride)
    cut_at(template, folder, kills, work, check)
    return {"effects": effects, "kills": len(kills)}


def carried_digest(template: Path, folder: Path) -> str:
    """Digest of release 2 with the core of release 1, which answers until the next is learned."""
    state = Path(shutil.copytree(template, folder / "carried"))
    with worn(state, Turned().world()) as wearer:
        personal = wearer.device.config[0].personal
        wearer.set(personal.model_copy(update={"min_windows": 1000}))
        assert wearer.cores.look() == "few-windows"
        assert wearer.model().personal
        return wearer.model().digest


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(every(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
