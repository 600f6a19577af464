"""The cells of a sweep: the product of its axes, each named by what decides its outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

from fleet.adapt.digest import digest_json
from fleet.config import RunConfig
from fleet.errors import InputError
from simulations.engines import Engine, check_engine
from simulations.sweep.recipe import Recipe, Scalar, methods_in, plain

__all__ = ["ENGINES", "Cell", "Fingerprints", "cells_of", "check_cell", "fingerprints"]

DIGITS = 16
# A cell is one process, which ends with its sweep. The others start processes of their own.
ENGINES = (Engine.cohort, Engine.loop)
# What a base is made from; frames are made anew for each cell.
BASE_KEYS = ("classes", "model", "seed", "fleet-fraction", "base-epochs")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        id: 16 hex digits of everything that decides the outcome: the configuration where it is not
            the default, with the digest of the data and of a base in place of their paths, methods
            and engine.
        config: The configuration; ``out`` is not the cell's.
        methods: Methods to run, from the same base.
        engine: How devices are run.
        base_key: Names the base that cells share; empty where the configuration names a file.
    """

    id: str
    config: RunConfig
    methods: tuple[str, ...]
    engine: Engine
    base_key: str

    def values(self) -> dict[str, Scalar]:
        """Return what a cell is by key: configuration, methods joined by comma, and engine."""
        values = {key: value for key, value in self.config.for_flower().items() if key != "out"}
        return values | {"method": ",".join(self.methods), "engine": self.engine.value}

    def base_config(self) -> RunConfig:
        """Return a run from whose base that of every cell with this ``base_key`` can be made.

        Frames are made anew for each cell from its kernels, so rank 1 serves all: it fits every
        layer. What follows is bit for bit the base that the cell would have trained by itself.
        """
        values = self.config.for_flower()
        shared = {key: values[key] for key in ("data", *BASE_KEYS)}
        return RunConfig.parse({**shared, "shift": "none", "rank": 1})


@dataclass(frozen=True)
class Fingerprints:
    """How names of files are resolved; apart, so that cells can be made without any.

    Args:
        data: From ``data`` of a configuration to the name or absolute path of the set and the
            digest of its content.
        base: The same for ``base``.
        trace: The same for ``trace``.
    """

    data: Callable[[str], tuple[str, str]]
    base: Callable[[str], tuple[str, str]]
    trace: Callable[[str], tuple[str, str]]


def cells_of(recipe: Recipe, engine: Engine, prints: Fingerprints) -> list[Cell]:
    """Return the cells of a recipe, each once; the first axis varies slowest.

    Raises:
        InputError: ``run-config`` where values do not go together, ``unknown-trace`` or
            ``bad-trace``, or what :func:`check_cell` says.
        DataError: ``data-unknown``.
        StorageError: For a base that is not there.
    """
    found: dict[str, Cell] = {}
    for chosen in product(*recipe.axes.values()):
        values = {**recipe.run, **dict(zip(recipe.axes, chosen, strict=True))}
        cell = _cell(values, engine, prints)
        found.setdefault(cell.id, cell)
    return list(found.values())


def check_cell(engine: Engine, config: RunConfig) -> None:
    """Refuse what an engine cannot do in a sweep, before anything runs.

    Raises:
        InputError: ``sweep-engine`` or ``trace-engine``.
    """
    if engine not in ENGINES:
        known = " or ".join(each.value for each in ENGINES)
        raise InputError(
            "sweep-engine",
            f"the engine of a sweep is {known}, not {engine.value}, whose processes would outlive "
            "a cell that is ended",
            f"Run one by one what needs it: fleet simulate --engine {engine.value}.",
        )
    check_engine(engine, 0, "", config.trace)


def fingerprints() -> Fingerprints:
    """Return how names are resolved on this machine; each file is read once."""
    return Fingerprints(lru_cache(_data), lru_cache(_base), lru_cache(_trace))


def _cell(values: dict[str, Scalar], engine: Engine, prints: Fingerprints) -> Cell:
    methods = methods_in(values.get("method", "core"))
    config = RunConfig.parse({key: plain(key, value) for key, value in values.items()})
    check_cell(engine, config)
    data, data_digest = prints.data(config.data)
    base, base_digest = prints.base(config.base) if config.base else ("", "")
    trace, trace_digest = prints.trace(config.trace) if config.trace else ("", "")
    config = config.model_copy(update={"data": data, "base": base, "trace": trace})
    content = {key: value for key, value in config.for_flower().items() if key != "out"}
    content |= {"data": data_digest, "base": base_digest, "trace": trace_digest}
    shared = "" if base else _named({key: content[key] for key in ("data", *BASE_KEYS)})
    content |= {"method": ",".join(methods), "engine": engine.value}
    return Cell(_named(content), config, methods, engine, shared)


def _named(content: dict[str, Scalar]) -> str:
    """Name what differs from the defaults, so that keys of later versions change no name."""
    defaults = RunConfig.parse({}).for_flower()
    told = {key: value for key, value in content.items() if value != defaults.get(key)}
    return digest_json(told)[:DIGITS]


def _data(name: str) -> tuple[str, str]:
    from fleet.har.dataset import digest
    from fleet.har.sources import default_name, find, path_of

    name = name or default_name()
    path = path_of(name)
    return name if path is None else str(path.resolve()), digest(find(name))


def _base(name: str) -> tuple[str, str]:
    from fleet.adapt.base import load_base

    return str(Path(name).resolve()), load_base(Path(name)).digest


def _trace(name: str) -> tuple[str, str]:
    from simulations.traces.trace import parse_trace, trace_place, trace_text

    text = trace_text(name)
    parse_trace(text, name)
    return trace_place(name), hashlib.sha256(text.encode()).hexdigest()
