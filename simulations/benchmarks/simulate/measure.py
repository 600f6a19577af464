"""Running the sides in turn, each run a fresh command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import RoundError
from simulations.benchmarks.simulate.outcome import Outcome
from simulations.benchmarks.simulate.sides import Side, Surroundings
from simulations.benchmarks.simulate.work import Work
from simulations.processes import Finished, execute

__all__ = ["TIMEOUT_S", "Measured", "OneRun", "measure"]

# Of one command; the slowest side takes minutes.
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class OneRun:
    """One run of a side: what was seen of it from outside, and what it says of itself."""

    seen: Finished
    said: Outcome


@dataclass(frozen=True)
class Measured:
    """All runs of all sides.

    Args:
        runs: By side, in the order in which they were made.
        absent: Why a side has none.
    """

    runs: Mapping[str, list[OneRun]]
    absent: Mapping[str, str]


def measure(
    sides: Mapping[str, Side],
    work: Work,
    around: Surroundings,
    runs: int,
    on_run: Callable[[str, int, OneRun | str], None],
) -> Measured:
    """Run every side ``runs`` times, one after the other and round after round.

    A side that fails is left out from then on, with its reason; the others go on.

    Args:
        sides: By name.
        work: The workload.
        around: What sides need besides.
        runs: Runs of each.
        on_run: Called after each with the side, the run from 1 and its result, or why it failed.
    """
    absent = {name: why for name, side in sides.items() if (why := side.absent(around))}
    found: dict[str, list[OneRun]] = {name: [] for name in sides if name not in absent}
    for name, why in absent.items():
        on_run(name, 0, why)
    for number in range(1, runs + 1):
        for name in [each for each in found if each not in absent]:
            try:
                one = _once(name, sides[name], work, around, number)
            except RoundError as error:
                absent[name] = f"failed in run {number}: {error.message}"
                on_run(name, number, absent[name])
            else:
                found[name].append(one)
                on_run(name, number, one)
    return Measured({name: runs for name, runs in found.items() if name not in absent}, absent)


def _once(name: str, side: Side, work: Work, around: Surroundings, number: int) -> OneRun:
    folder = work.folder / "runs" / f"{name}-{number}"
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    with side.command(work, folder, around) as command:
        seen = execute(command, folder, log, TIMEOUT_S, memory=True)
    if seen.code:
        raise RoundError("side-failed", f"exit code {seen.code}; {_last_line(log)}")
    try:
        said = side.outcome(folder)
    except RoundError as error:
        # `flwr run` exits 0 even when the app failed.
        raise RoundError("side-failed", f"{error.message}; {_last_line(log)}") from error
    if len(said.rounds) != work.config.rounds:
        raise RoundError(
            "side-failed", f"{len(said.rounds)} of {work.config.rounds} rounds; {_last_line(log)}"
        )
    return OneRun(seen, said)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{log} ends: {lines[-1].strip()}" if lines else f"{log} is empty"
