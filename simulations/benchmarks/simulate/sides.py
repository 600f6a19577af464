"""The sides: the command of each, what it needs, and where its outcome is found."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from simulations import machine
from simulations.benchmarks.simulate import cohort
from simulations.benchmarks.simulate.outcome import Outcome, of_run_folder, read_outcome
from simulations.benchmarks.simulate.work import Work
from simulations.flwr_run import CHECKOUT, flwr_command
from simulations.processes import Command

__all__ = ["SIDES", "Side", "Surroundings", "find_sides"]

HERE = "simulations.benchmarks.simulate"


@dataclass(frozen=True)
class Surroundings:
    """What a side is made of besides the workload.

    Args:
        pfl_python: Interpreter that has pfl-research; None where there is none.
        cores: Processes or actors that a side may use.
    """

    pfl_python: str | None = None
    cores: int = field(default_factory=machine.cores)


@dataclass(frozen=True)
class Side:
    """One way to compute the workload.

    Args:
        summary: What it is, in a line.
        command: From the workload, a folder of the run's own and the surroundings to its command;
            the context ends what the command needs but does not make itself.
        outcome: Reads the outcome from that folder.
        absent: Why it cannot run here; empty where it can.
        ready_windows: Whether it trains on the workload's ready-made windows.
    """

    summary: str
    command: Callable[[Work, Path, Surroundings], contextlib.AbstractContextManager[Command]]
    outcome: Callable[[Path], Outcome]
    absent: Callable[[Surroundings], str]
    ready_windows: bool = False


@contextlib.contextmanager
def _cohort(work: Work, out: Path, around: Surroundings) -> Iterator[Command]:
    yield Command((str(Path(sys.executable).parent / "fleet"), *cohort.words(work, out)), {})


def _loop(method: str) -> Callable[..., contextlib.AbstractContextManager[Command]]:
    @contextlib.contextmanager
    def command(work: Work, out: Path, around: Surroundings) -> Iterator[Command]:
        words = (sys.executable, "-m", f"{HERE}.loop", method, str(work.path), str(out))
        yield Command((*words, str(around.cores)), {})

    return command


@contextlib.contextmanager
def _pfl(work: Work, out: Path, around: Surroundings) -> Iterator[Command]:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={around.cores}")
    script = ("-m", f"{HERE}.pfl_run", str(work.path), str(out))
    yield Command((around.pfl_python or "PFL_PYTHON", *launcher, *script), {})


def _flower(*, tuned: bool) -> Callable[..., contextlib.AbstractContextManager[Command]]:
    """Make the command of ``flwr run``, which starts a SuperLink of its own and then Ray."""

    @contextlib.contextmanager
    def command(work: Work, out: Path, around: Surroundings) -> Iterator[Command]:
        config = work.config.model_copy(update={"out": str(out)})
        # Ray's sockets lie in here, and a socket's path has at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="fleet-", ignore_cleanup_errors=True) as home:
            yield flwr_command(config, Path(home), config.devices, around.cores, tuned=tuned)

    return command


def _of_our_engine(out: Path) -> Outcome:
    return of_run_folder(out / "core")


def _here(around: Surroundings) -> str:
    return ""


def _forks(around: Surroundings) -> str:
    return "" if sys.platform == "linux" else "its pool of processes is forked, which needs Linux"


def _has_flower(around: Surroundings) -> str:
    if not (CHECKOUT / "corefleet_app").is_dir():
        return f"`flwr run` needs a checkout with its pyproject.toml; {CHECKOUT} is none"
    if find_spec("ray") is None:
        return "Ray is not installed; the extra sim brings it on Python 3.11"
    return ""


def _has_pfl(around: Surroundings) -> str:
    how = "docs/bench-simulate.md says how to install it"
    if around.pfl_python is None:
        return f"no --pfl-python was given; {how}"
    if shutil.which(around.pfl_python) is None:
        return f"there is no interpreter {around.pfl_python}; {how}"
    needed = "import pfl, torch, fleet.adapt.base"
    done = subprocess.run(
        [around.pfl_python, "-c", needed], capture_output=True, text=True, timeout=120, check=False
    )
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"{around.pfl_python} cannot use it ({last}); {how}" if done.returncode else ""


SIDES: dict[str, Side] = {
    "cohort": Side("ours: cores, a cohort as one computation", _cohort, _of_our_engine, _here),
    "loop-full": Side(
        "a PyTorch loop over processes: all weights", _loop("full"), read_outcome, _forks, True
    ),
    "loop-core": Side(
        "the same loop: cores in plain autograd", _loop("core"), read_outcome, _forks, True
    ),
    "flwr-ray": Side(
        "flwr run on Ray, tuned: our client code, cores",
        _flower(tuned=True),
        _of_our_engine,
        _has_flower,
    ),
    "flwr-ray-default": Side(
        "the same with Flower's own settings", _flower(tuned=False), _of_our_engine, _has_flower
    ),
    "pfl": Side("pfl-research over processes: all weights", _pfl, read_outcome, _has_pfl, True),
}
"""By name, in the order in which they take turns."""


def find_sides(text: str) -> dict[str, Side]:
    """Return the sides of a comma-separated list of names; all of them for an empty one.

    Raises:
        InputError: ``unknown-side``.
    """
    from fleet.errors import InputError

    names = [name.strip() for name in text.split(",") if name.strip()] or list(SIDES)
    unknown = [name for name in names if name not in SIDES]
    if unknown:
        raise InputError(
            "unknown-side",
            f"there is no side {', '.join(unknown)}",
            f"Known: {', '.join(SIDES)}.",
        )
    return {name: SIDES[name] for name in SIDES if name in names}
