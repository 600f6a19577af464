"""The workload: a recipe, and what is made of it once for all sides before anything is timed.

    WORK/work.json           the run configuration, the cohort of each round, the rates
    WORK/data.npz            the data set, where it is generated
    WORK/base.safetensors    the pre-trained network and its frames
    WORK/windows/*.npy       every device's windows, ready to train on

Sides that bring data code of their own (ours, and Flower, which runs ours) make their windows from
the data set; the others are given them ready-made, which costs them nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.adapt.base import save_base
from fleet.config import RunConfig
from fleet.errors import InputError, UnavailableError
from fleet.files import write_json
from fleet.har import canonical
from fleet.har.population import Population, population_of
from fleet.har.sources import default_name, find, locate
from fleet.har.virtual import VirtualFleet, virtual_fleet
from fleet.seeds import generator
from server.prepare import normalisation_of, obtain_base
from simulations.benchmarks.simulate.windows import write_windows
from simulations.benchmarks.simulate.work import Work

__all__ = ["RECIPE", "Recipe", "cohorts_of", "prepare", "read_recipe"]

RECIPE = Path(__file__).parents[2] / "experiments" / "reference.toml"


@dataclass(frozen=True)
class Recipe:
    """What is to be computed.

    Args:
        config: The run; its learning rate is that of the cores.
        full_rate: Learning rate of the sides that train all weights.
    """

    config: RunConfig
    full_rate: float


def read_recipe(path: Path = RECIPE, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: TOML file with the tables ``run`` and ``full``.
        changes: Values of the run configuration that replace the recipe's.

    Raises:
        InputError: ``bad-recipe``, ``run-config``, or ``cohort-too-large``.
        UnavailableError: ``no-toml`` on a Python before 3.11.
    """
    if sys.version_info < (3, 11):
        raise UnavailableError("no-toml", "recipes are read with Python 3.11 or newer")
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        run, full_rate = dict(content["run"]), float(content["full"]["learning-rate"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("bad-recipe", f"{path} is no recipe of this bench: {error}") from error
    run |= {name.replace("_", "-"): value for name, value in (changes or {}).items()}
    config = RunConfig.parse(run)
    problems = [
        f"{name} must be given, not 0"
        for name in ("devices", "windows_per_device", "cohort", "learning_rate")
        if not getattr(config, name)
    ]
    if config.cohort > config.devices:
        problems.append(f"a cohort of {config.cohort} needs more than {config.devices} devices")
    if config.method != "core" or not full_rate > 0:
        problems.append("method is core and both learning rates are positive")
    if problems:
        raise InputError("bad-recipe", f"{path}, as changed: {'; '.join(problems)}")
    return Recipe(config, full_rate)


def prepare(recipe: Recipe, folder: Path, *, windows: bool = True) -> Work:
    """Make what all sides are given, in ``folder``, and return it.

    Args:
        recipe: What is to be computed.
        folder: Made where it is missing.
        windows: Whether a side needs windows that are ready-made; they take
            ``devices × 2 × windows × channels × samples × 4`` bytes of disk.

    Raises:
        DataError: When the data is not to be had, or a device has no windows.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = recipe.config.model_copy(update={"data": _data(recipe.config, folder)})
    population = population_of(config)
    base = obtain_base(config, population)
    path = folder / "base.safetensors"
    save_base(base, path)
    config = config.model_copy(update={"base": str(path)})
    fleet = virtual_fleet(config, population)
    work = Work(
        config=config,
        full_rate=recipe.full_rate,
        cohorts=cohorts_of(config),
        folder=folder,
        sizes=_sizes(population, fleet),
    )
    if windows:
        write_windows(work.windows, fleet, normalisation_of(base))
    write_json(folder / "work.json", work.record())
    return work


def cohorts_of(config: RunConfig) -> tuple[tuple[int, ...], ...]:
    """Return the devices of each round by partition id, as the coordinator draws them."""
    everyone = range(config.devices)
    drawn = []
    for number in range(1, config.rounds + 1):
        chosen: Any = everyone
        if config.cohort < config.devices:
            rng = generator(config.seed, number, "server", "cohort")
            chosen = sorted(rng.choice(config.devices, config.cohort, replace=False))
        drawn.append(tuple(map(int, chosen)))
    return tuple(drawn)


def _data(config: RunConfig, folder: Path) -> str:
    """Return what names the data for every side; a generated set is written once."""
    name = config.data or default_name()
    found = locate(name)
    if found is not None:
        return str(found.resolve())
    path = folder / "data.npz"
    canonical.write(find(name), path)
    return str(path)


def _sizes(population: Population, fleet: VirtualFleet) -> dict[str, int]:
    shares = [fleet.share(partition) for partition in range(len(fleet))]
    return {
        "devices": len(fleet),
        "channels": len(population.dataset.channels),
        "samples": population.dataset.window,
        "classes": len(population.dataset.labels),
        "training_windows": sum(len(share.train) for share in shares),
        "test_windows": sum(len(share.test) for share in shares),
    }
