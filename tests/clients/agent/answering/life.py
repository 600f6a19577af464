"""An agent's whole life, step by step, and what must be true of its device afterwards.

    samples → windows → labels → start → status → train → reply → release → evaluation

Every step may be done again: a life that was cut off is lived anew on what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from clients.agent.answering import Agent
from clients.agent.answering.held import Held
from clients.agent.answering.labelled import labelled
from clients.agent.answering.packing import pack_update, unpack_update
from clients.agent.answering.releases import WANTED
from clients.agent.answering.training import MARKS
from clients.agent.answering.world import Cadence
from clients.agent.intake.sources import ingest_file
from clients.agent.intake.spec import spec_of
from clients.agent.learner import Learner
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.recover import recover
from clients.agent.serving.serve import Serving
from clients.agent.store import Store, open_store
from clients.link.records import Metrics, Request
from fleet.adapt.base import save_base
from fleet.federate.wire import Payload
from tests.clients.agent.answering.asking import Fleet
from tests.clients.agent.answering.devices import NAME, NOON, Turned, device_config
from tests.clients.agent.intake.recordings import streamed, write_csv
from tests.clients.agent.serving.factories import (
    CHANNELS,
    LABELS,
    MEAN,
    RATE_HZ,
    STD,
    WINDOW,
    raw_windows,
)

SIDES = ("train", "held-out")
STRETCH = 64  # samples of one class, seven windows
WINDOWS = 7 * len(LABELS)  # of each side; enough for a probe
BLOCK_BYTES = 8000
PERSON = "ada"
Ack = Callable[[str], None]
EVERY_STEP = Cadence(checkpoint_s=0.0, busy_s=0.05)


def prepared(folder: Path, fleet: Fleet) -> Path:
    """Make a device that serves its base, with two recordings beside its state directory."""
    folder.mkdir(parents=True)
    save_base(fleet.base, folder / "base.safetensors")
    Serving(folder / "state").install_base(folder / "base.safetensors")
    columns = [name for name, _ in fleet.base.record.channels]
    for seed, side in enumerate(SIDES):
        random = np.random.default_rng(seed)
        x = random.normal(MEAN, STD, size=(len(LABELS), STRETCH, CHANNELS)).astype(np.float32)
        times, values = streamed(iter(x), RATE_HZ, _origin(side))
        write_csv(folder / f"{side}.csv", columns, times, values)
    return folder


def _origin(side: str) -> float:
    return 1.7e9 + 1000 * SIDES.index(side)


class Life:
    """One process of a device, from intake to evaluation.

    Args:
        folder: From :func:`prepared`.
        fleet: Who asks.
        acknowledge: Told each time that somebody was told that something is done.
    """

    def __init__(self, folder: Path, fleet: Fleet, acknowledge: Ack) -> None:
        self._folder = folder
        self._fleet = fleet
        self._acknowledge = acknowledge
        self._open = ExitStack()
        self._store: Store | None = None
        self._agent: Agent | None = None

    def steps(self) -> tuple[Callable[[], None], ...]:
        """Return what is done, in this order; each may be done again."""
        return (*self.own(), self.start, self.status, self.train, self.release, self.evaluate)

    def own(self) -> tuple[Callable[[], None], ...]:
        """Return what the device does before its agent starts."""
        return (self.open, self.take_in, self.label)

    @property
    def opened(self) -> bool:
        return self._store is not None

    def live(self) -> None:
        """Do everything, then close."""
        with self:
            for step in self.steps():
                step()

    def open(self) -> None:
        if self._store is None:
            opened = open_store(self._folder / "state", clock=NOON.timestamp)
            self._store = self._open.enter_context(opened)
            assert self._store.notices == (), self._store.notices
            self._acknowledge("opened")

    def take_in(self) -> None:
        assert self._store is not None
        for side in SIDES:
            spec = spec_of(self._fleet.base.record, split=side)  # type: ignore[arg-type]
            path = self._folder / f"{side}.csv"
            ingest_file(path, "csv", spec, self._store, PERSON, block_bytes=BLOCK_BYTES)
            self._acknowledge(f"windows {side}")

    def label(self) -> None:
        assert self._store is not None
        for side in SIDES:
            at_s = _origin(side)
            for label in LABELS:
                end_s = at_s + STRETCH / RATE_HZ
                key = f"{side} {label}"
                self._store.labels.range(PERSON, at_s, end_s, label, PERSON, key)
                self._acknowledge(f"label {key}")
                at_s += (STRETCH - 1) / RATE_HZ + 1.0

    def start(self) -> None:
        """Start the agent as the daemon does."""
        if self._agent is None:
            assert self._store is not None
            state, config = self._folder / "state", device_config()
            serving = Serving(state)
            source = recover(serving).source
            world = Turned().world(cadence=EVERY_STEP, say=self._said)
            self._agent = Agent(Held(state, self._store, serving, "0"), lambda: config, world)
            self._agent.releases.finish()
            served = serving.served
            self._acknowledge(f"started {source} {served.number if served else -1}")

    def status(self) -> None:
        status = self._ask("query.status").config
        self._acknowledge(f"status {status['train_windows']}")

    def train(self) -> None:
        update = self._ask("train", self._fleet.train)
        self._acknowledge(f"answered {digest_of(update)}")

    def release(self) -> None:
        status = self._ask("query.release", self._fleet.release)
        assert status.config["release"] == 2
        self._acknowledge("released")

    def evaluate(self) -> None:
        metrics = self._ask("evaluate", self._fleet.release)
        assert isinstance(metrics, Metrics)
        assert metrics.values["num-examples"] == WINDOWS
        self._acknowledge("evaluated")

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _said(self, event: str, **values: Any) -> None:
        if event == "release.kept":
            self._acknowledge(f"kept {values['reason']}")

    def _ask(self, kind: str, payload: Payload | None = None) -> Any:
        assert self._agent is not None
        nothing = Payload(np.zeros(0, np.float32), {})
        self._acknowledge(f"asked {kind}")
        return self._agent.answer(Request(kind, payload or nothing, 60.0))


def digest_of(update: Payload) -> str:
    return hashlib.sha256(pack_update(update)).hexdigest()


def update_of(folder: Path, fleet: Fleet) -> Payload:
    """Return what the device holds as its answer to the plan."""
    with open_store(folder / "state", clock=NOON.timestamp) as store:
        kept = store.outbox.get(fleet.plan.id)
    assert kept is not None
    assert kept.payload is not None
    return unpack_update(kept.payload)


def oracle(folder: Path, fleet: Fleet) -> str:
    """Digest of what the bare learner answers from the device's windows."""
    with open_store(folder / "state", clock=NOON.timestamp) as store:
        windows = labelled(store, fleet.base.record).windows
    answer = Learner(NAME, fleet.base, windows).answer_plan(fleet.train)
    return digest_of(answer)


def check_kept(folder: Path, acknowledged: list[str]) -> None:
    """Hold a device that was cut off to what it had acknowledged; more may be there."""
    with open_store(folder / "state", clock=NOON.timestamp) as store:
        assert store.notices == (), store.notices
        kept = {side: _windows(store, side) for side in SIDES}
    for side in SIDES:
        if f"windows {side}" in acknowledged:
            assert len(kept[side]) == WINDOWS
        for label in LABELS:
            if f"label {side} {label}" in acknowledged:
                assert [one[2] for one in kept[side]].count(label) == STRETCH // 8 - 1


def check_serves(folder: Path, fleet: Fleet, acknowledged: list[str]) -> None:
    """Hold what a device serves to what may be served after what it had acknowledged."""
    model = DeviceModel(folder / "state", retry_s=0)
    _, got = model.predict(raw_windows(4))
    assert model.problem == ""
    assert model.served.number in allowed(acknowledged), (model.served, acknowledged)
    np.testing.assert_allclose(got, fleet.answers[model.served.number], rtol=1e-3, atol=1e-5)


def allowed(acknowledged: list[str]) -> set[int]:
    """Return which releases may be served: from the last acknowledged to the last asked for."""
    words = {one.split()[0] for one in acknowledged}
    lowest, highest = 0, 0
    if "answered" in words and "kept" not in words:  # a disk that refuses a release says so
        lowest = 1
    if "released" in words:
        lowest = 2
    if "asked train" in acknowledged:
        highest = 1
    if "asked query.release" in acknowledged:
        highest = 2
    return set(range(lowest, highest + 1))


def snapshot(folder: Path, fleet: Fleet) -> Mapping[str, Any]:
    """Return all of a device that must not depend on how often it was cut off."""
    state = folder / "state"
    with open_store(state, clock=NOON.timestamp) as store:
        kept = store.outbox.get(fleet.plan.id)
        assert kept is not None
        assert kept.payload is not None
        events = [entry.event for entry in store.journal.entries(fleet.plan.id)]
        found = {
            **{side: _windows(store, side) for side in SIDES},
            "counters": store.counters.all(),
            "update": hashlib.sha256(kept.payload).hexdigest(),
            "delivered": kept.delivered_s is not None,
            "waiting": len(store.outbox.waiting()),
            "finished": events.count("finished"),
            "checkpoint": store.checkpoints.plan(),
            "trainings": len(store.state.get(MARKS, [])),
            "wanted": store.state.get(WANTED),
        }
    serving = Serving(state)
    found["served"] = serving.served
    found["last-good"] = serving.last_good
    found["kept"] = serving.folder.release_names()
    models = {path.stem for path in serving.folder.served.iterdir()}
    found["unnamed"] = models - serving.folder.named()
    found["leftovers"] = sorted(path.name for path in state.rglob("*.tmp"))
    return found


def _windows(store: Store, side: str) -> list[tuple[float, str, str | None, str]]:
    shape = (CHANNELS, WINDOW)
    found = store.windows.load(shape, split=side)  # type: ignore[arg-type]
    assert found.damaged == 0
    rows = zip(found.start_s, found.x, found.labels, found.people, strict=True)
    return [
        (float(start_s), hashlib.sha256(x.tobytes()).hexdigest(), label, person)
        for start_s, x, label, person in rows
    ]
