"""The side ``cohort``: ``fleet simulate`` as a user types it, with results, report and plots."""

from __future__ import annotations

from pathlib import Path

from fleet.config import RunConfig
from fleet.errors import InputError
from simulations.benchmarks.simulate.work import Work

__all__ = ["words"]

# What the command line says by other flags, or not at all; the last two are of a standing service.
SAID_OTHERWISE = {"out", "method", "learning_rate", "registry", "release_key"}
NO_FLAG = {"fleet_fraction", "train_fraction", "quorum", "weight_cap"}


def words(work: Work, out: Path) -> tuple[str, ...]:
    """Return the command's words after ``fleet``.

    Raises:
        InputError: ``bad-recipe`` for a setting that the command has no flag for.
    """
    found = ["simulate", "--methods", "core", "--rate", f"core={work.config.learning_rate}"]
    defaults = RunConfig.parse({})
    for name, value in work.config.model_dump(mode="json").items():
        if name in SAID_OTHERWISE or value == getattr(defaults, name):
            continue
        flag = f"--{name.replace('_', '-')}"
        if name in NO_FLAG:
            raise InputError(
                "bad-recipe",
                f"fleet simulate has no flag {flag}, which the recipe sets to {value}",
                "Leave it out of the recipe.",
            )
        found += [flag, str(value)]
    return (*found, "--out", str(out))
