"""A box whose SuperLink, SuperExec, ServerApp and control service are killed in open rounds.

What must have come of it is what comes of a box that nobody touched: the simulation's releases, to
the digest, each made of one update of every device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from clients.agent.answering.packing import unpack_update
from clients.agent.store import open_reader
from fleet.federate.releases import load_release
from server.registry import Registry
from server.registry.records import RoundState
from simulations.box.wanted import Box, Wanted
from simulations.engines import Engine
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.chaos import Blow, Chaos, Kind, Strike, chaos, strikes_of
from tests.simulations.tiny_fleet import make_config, tiny_base_file, tiny_data

__all__ = ["make_config", "tiny_base_file", "tiny_data"]

DEVICES, RATE, RANK = 2, 0.1, 2
EVERY = tuple(Kind)
SINGLES = [(kind,) for kind in EVERY]
PAIRS = list(combinations(EVERY, 2))
# Twenty blows: each kind twice, each pair, each three of the four but one, all of them three times.
TWENTY = [*SINGLES, *SINGLES, *PAIRS, *list(combinations(EVERY, 3))[:3], *[EVERY] * 3]


def wanted_of(data: Path, base: Path, rounds: int) -> tuple[Wanted, list[str]]:
    """Return the box, as Python and as ``fleet up`` take it."""
    wanted = Wanted(DEVICES, str(data), rounds, base=str(base), rank=RANK, rate=RATE)
    words = ["--devices", str(DEVICES), "--data", str(data), "--rounds", str(rounds)]
    return wanted, [*words, "--base", str(base), "--rank", str(RANK), "--rate", str(RATE)]


def undisturbed(wanted: Wanted, folder: Path) -> list[str]:
    """Return the digests of the releases of the same run in a simulation."""
    config = wanted.config().model_copy(update={"out": str(folder)})
    run = Run(config, ("core",), {"core": RATE}, Engine.loop)
    simulate(open_run(run, resume=False), Silent())
    paths = sorted((folder / "core" / "releases").glob("*.safetensors"))
    return [load_release(path).digest for path in paths]


def check(registry: Registry, names: Sequence[str], box: Box, digests: Sequence[str]) -> None:
    """Hold a fleet that has been through something to what one has that has not."""
    rounds = len(digests)
    made = [row.digest for row in registry.releases.all() if row.number > 0]
    assert made == list(digests)
    rows = registry.rounds.all()
    assert [(row.round, row.attempt, row.state) for row in rows] == [
        (number, 1, RoundState.released) for number in range(1, rounds + 1)
    ]
    updates = {row.plan.id: registry.rounds.updates(row.round) for row in rows}
    for each in updates.values():
        assert sorted(update.device for update in each) == sorted(names)
    verbs = [row.verb for row in registry.audit.rows()]
    assert verbs.count("update.accept") == rounds * len(names)
    assert verbs.count("round.open") == verbs.count("round.release") == rounds
    registry.audit.verify()
    for number in range(1, rounds + 1):
        assert registry.replay(number).same
    for name in names:
        with open_reader(box.device(name), clock=time.time) as store:
            for plan, each in updates.items():
                kept, (update,) = store.outbox.get(plan), (u for u in each if u.device == name)
                # Trained once, and what came is what the outbox holds.
                assert kept is not None
                assert kept.payload is not None
                held = unpack_update(kept.payload)
                assert held.array.tobytes() == update.payload.array.tobytes()
                assert dict(held.config) == dict(update.payload.config)


def shown(blows: Sequence[Blow]) -> str:
    """Return how long each kind took to come back after its own blows, as text."""
    lines = [
        f"round {blow.round}, {blow.accepted} accepted: killed "
        f"{'+'.join(kind.value for kind in blow.strike.kinds)}; "
        + ", ".join(f"{kind.value} {seconds:.1f} s" for kind, seconds in blow.healed_s.items())
        for blow in blows
    ]
    return "\n".join(lines)


def strike_all(running: Chaos, strikes: Sequence[Strike]) -> list[Blow]:
    blows = []
    for strike in strikes:
        blows.append(running.carry_out(strike))
        print(shown(blows[-1:]), flush=True)
    return blows


@pytest.mark.deployment
@pytest.mark.timeout(900)
def test_a_fleet_loses_and_doubles_nothing_when_each_process_of_its_server_is_killed(
    tiny_data: Path, tiny_base_file: Path, tmp_path: Path
) -> None:
    wanted, words = wanted_of(tiny_data, tiny_base_file, rounds=3)
    digests = undisturbed(wanted, tmp_path / "here")
    # The service is what takes long to come back, so it goes down once.
    strikes = [
        Strike((Kind.control,), round=1, after=0, pause_s=0.0),
        Strike((Kind.superlink, Kind.superexec, Kind.service), round=2, after=0, pause_s=0.0),
    ]
    with chaos(wanted, words) as running:
        blows = strike_all(running, strikes)
        running.until(lambda: running.released(len(digests)))
        check(running.registry, running.names, running.box, digests)
        running.stop()
        assert running.are_gone(), running.commands()
    assert {kind for blow in blows for kind in blow.strike.kinds} == set(EVERY)


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(4))
def test_a_fleet_comes_through_blows_at_random_points_with_the_releases_of_an_undisturbed_one(
    tiny_data: Path, tiny_base_file: Path, tmp_path: Path, seed: int
) -> None:
    targets = TWENTY[seed::4]
    wanted, words = wanted_of(tiny_data, tiny_base_file, rounds=len(targets) + 1)
    digests = undisturbed(wanted, tmp_path / "here")
    with chaos(wanted, words) as running:
        blows = strike_all(running, strikes_of(targets, DEVICES, seed))
        assert running.leave() == 0, running.logs()
        assert running.are_gone(), running.commands()
        check(running.registry, running.names, running.box, digests)
        served = {(each.serves_release, each.serves) for each in running.registry.devices.all()}
    assert len(blows) == len(targets)
    assert {release for release, _ in served} == {len(digests)}
    assert len({digest for _, digest in served}) == 1
