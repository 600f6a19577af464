"""The side ``cohort``: the job of ``fleet simulate --engine cohort``, in a process of its own.

    python -m simulations.benchmarks.simulate.cohort WORK.json OUT

It stands beside the command line only because the command has no flag for the evaluation schedule;
everything else, report and plots included, is that command's work.
"""

from __future__ import annotations

import sys
from pathlib import Path

from simulations.benchmarks.simulate.work import read_work
from simulations.engines import Engine
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate

__all__ = ["main"]


def main(work: Path, out: Path) -> None:
    """Run the workload on the cohort engine and leave its run folder in ``out``."""
    config = read_work(work).config.model_copy(update={"out": str(out)})
    simulate(open_run(Run(config, ("core",), {}, Engine.cohort), resume=False), Silent())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
