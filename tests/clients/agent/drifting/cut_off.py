"""Run as a process: a device's watching, killed at one SQL statement after the other.

    python -m tests.clients.agent.drifting.cut_off FOLDER STRIDE

It forks a child for each statement, so that the interpreter starts once; then it goes on with what
the child left, and holds that to where an unbroken look ends.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from clients.agent.drifting import watcher as module
from clients.agent.learner import workbench
from clients.agent.store import Store, open_store
from tests.clients.agent.answering.cut_off import cut_at, effects_of, killed
from tests.clients.agent.answering.devices import NOON
from tests.clients.agent.answering.life import Ack
from tests.clients.agent.drifting.streams import add, watch_all, watcher_of
from tests.clients.agent.serving.factories import LABELS, make_base

SIGNALS = ("label-free", "loss") if find_spec("river") else ("label-free",)
BASE = make_base()
WINDOWS, TURNED = 300, 100
BATCH = 64


def prepared(state: Path) -> None:
    """Fill a store: a stream whose sensor is turned, some windows labelled early, some late."""
    with open_store(state, clock=NOON.timestamp) as store:
        store.labels.range("ada", 0, 1200, LABELS[0], "ada")
        add(store, WINDOWS)
        add(store, TURNED, WINDOWS, turned=True)
        store.labels.range("ada", 1500, 2500, LABELS[1], "ada")


def watch(store: Store) -> None:
    watch_all(watcher_of(store, BASE, signals=SIGNALS, loss_warm_up=20))


def looked(state: Path, acknowledge: Ack) -> None:
    with open_store(state, clock=NOON.timestamp) as store:
        watch(store)


def snapshot(state: Path) -> dict[str, Any]:
    """Return all that watching keeps; finish it first."""
    with open_store(state, clock=NOON.timestamp) as store:
        assert store.notices == ()
        watch(store)
        with store.database.read() as connection:
            rows = connection.execute("SELECT key, value FROM state").fetchall()
        return {**dict(rows), **store.counters.all()}


def main(folder: Path, stride: int) -> None:
    torch.set_num_threads(1)
    module.BATCH_WINDOWS = BATCH
    workbench(BASE)
    template = folder / "template"
    prepared(template)
    unbroken = Path(shutil.copytree(template, folder / "unbroken"))
    work = partial(killed, looked)
    statements = effects_of(unbroken, work)
    expected = snapshot(unbroken)

    def check(place: Path, _: list[str]) -> None:
        assert snapshot(place) == expected

    cut_at(template, folder, range(1, statements + 1, stride), work, check)
    shown = {name: value for name, value in expected.items() if name.startswith("drift.")}
    print(json.dumps({"statements": statements, "kept": shown}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
