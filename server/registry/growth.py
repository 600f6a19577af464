"""How a registry grows and how fast it commits: ``python -m server.registry.growth --help``."""

from __future__ import annotations

import argparse
import base64
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import text

from fleet.adapt.state import CoreState, Layout
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.records import WIRE_FORMAT, Plan, UpdateHeader
from fleet.federate.releases import Release, next_release
from fleet.federate.rule import MEAN, RuleSpec, read_rule
from fleet.federate.wire import Payload, Update, encode_update
from server.registry.registry import Registry, open_registry
from server.rules import rule_of

__all__ = ["Growth", "measure"]

FLOAT_BYTES = 4
ACTOR = "growth"


@dataclass(frozen=True)
class Growth:
    """What some rounds cost.

    Args:
        rounds: How many.
        bytes_per_round: By which the database grew, on average.
        commits: Transactions: one per update, and two per round.
        seconds: Wall time of all of them, with admission and aggregation.
    """

    rounds: int
    bytes_per_round: float
    commits: int
    seconds: float

    @property
    def commits_per_s(self) -> float:
        """Durable transactions a second, one after the other."""
        return self.commits / self.seconds


def measure(
    registry: Registry,
    *,
    devices: int = 50,
    update_bytes: int = 2000,
    rounds: int = 20,
    rule: RuleSpec = MEAN,
    now: Callable[[], float] = time.perf_counter,
) -> Growth:
    """Run rounds of made-up updates through an empty registry.

    Args:
        registry: Empty; it is filled.
        devices: Of the cohort, all of which answer.
        update_bytes: Packed array of one update, and of a release.
        rounds: How many.
        rule: How updates are aggregated; what it remembers is kept with each release.
        now: Seconds of a stopwatch.
    """
    layout = Layout.of({"layer.core": (max(1, update_bytes // FLOAT_BYTES), 1)})
    names = [f"device-{number:05d}" for number in range(devices)]
    for name in names:
        body = base64.b64encode(name.encode()).decode()
        registry.devices.enroll(name, f"ssh-made-up {body}", actor=ACTOR)
    release = Release(0, "a" * 64, "b" * 64, "", "core", CoreState.zero(layout))
    registry.bases.install(release.base, b"none", actor=ACTOR)
    registry.releases.add(release, actor=ACTOR)
    before, started = _size(registry), now()
    for number in range(1, rounds + 1):
        release = _round(registry, release, number, names, rule)
    seconds = now() - started
    grown = (_size(registry) - before) / rounds
    return Growth(rounds, grown, rounds * (devices + 2), seconds)


def _round(
    registry: Registry, start: Release, number: int, names: list[str], spec: RuleSpec
) -> Release:
    plan = _plan(start, number)
    registry.rounds.open(plan, names, rule={**spec.record, "spelt": spec.text}, actor=ACTOR)
    random = np.random.default_rng(number)
    admitted: dict[str, Admitted] = {}
    for name in names:
        payload = _payload(plan, start, name, random)
        verdict = admit(payload, plan, start.state.layout, name, Bounds())
        assert isinstance(verdict, Admitted)
        registry.rounds.accept(number, verdict, payload, actor=ACTOR)
        admitted[name] = verdict
    memory = registry.releases.memory(start.number, spec)
    closed = rule_of(spec).close(start, admitted, memory)
    provenance = {
        "round": number,
        "plan": plan.id,
        "rule": {**spec.record, **closed.record},
        "devices": {name: each.weight for name, each in admitted.items()},
    }
    release = next_release(start, closed.mean, provenance)
    registry.rounds.release(number, release, memory=closed.memory, actor=ACTOR)
    return release


def _plan(start: Release, number: int) -> Plan:
    return Plan(
        round=number,
        base=start.base,
        frame=start.frame,
        layout=start.state.layout.digest,
        release=start.number,
        state=start.state.digest,
        method=start.method,
        rank=1,
        epochs=1,
        batch=32,
        optimiser="sgd",
        learning_rate=0.1,
        momentum=0.9,
        seed=0,
        weight_cap=4096,
        deadline_s=600.0,
    )


def _payload(plan: Plan, start: Release, name: str, random: np.random.Generator) -> Payload:
    flat = random.normal(size=start.state.layout.size).astype(np.float32) / 100
    header = UpdateHeader(
        format=WIRE_FORMAT,
        plan=plan.id,
        device=name,
        base=plan.base,
        frame=plan.frame,
        layout=plan.layout,
        examples=int(random.integers(1, 1000)),
        steps=10,
        loss=float(random.random()),
    )
    return encode_update(Update(header, CoreState.from_flat(start.state.layout, flat)))


def _size(registry: Registry) -> int:
    """Return the bytes of the database, without SQLite's log, which is cut back."""
    query = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if registry.database.path
        else "SELECT pg_database_size(current_database())"
    )
    with registry.database.read() as connection:
        return int(connection.execute(text(query)).scalar_one())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m server.registry.growth", description=__doc__)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--update-bytes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rule", type=read_rule, default=MEAN.text, help="e.g. adam:0.01")
    parser.add_argument("--url", default="", help="an empty registry; a temporary file without")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = chosen.url or Path(folder) / "registry.sqlite"
        with open_registry(place, clock=time.time) as registry:
            found = measure(
                registry,
                devices=chosen.devices,
                update_bytes=chosen.update_bytes,
                rounds=chosen.rounds,
                rule=chosen.rule,
            )
    print(
        f"{chosen.devices} devices x {chosen.update_bytes} B: {found.bytes_per_round:,.0f} B per "
        f"round; {found.commits_per_s:,.0f} commits/s ({found.commits} in {found.seconds:.1f} s)"
    )


if __name__ == "__main__":
    main()
