"""A run's base and data named so that another process, wherever it works, finds the same."""

from __future__ import annotations

from pathlib import Path

from fleet.config import RunConfig
from fleet.errors import DataError
from fleet.har.sources import BUILT_IN, available, default_name

__all__ = ["placed"]


def placed(config: RunConfig) -> RunConfig:
    """Return a configuration with whole paths of base, data and results.

    What an empty name of a data set stands for depends on what a machine holds, so it is decided
    here. Data that is generated keeps its name.

    Raises:
        DataError: ``data-unknown`` when there is no such data here.
    """
    out = Path(config.out).resolve()
    base = Path(config.base) if config.base else out / "base.safetensors"
    name = config.data or default_name()
    data = name if name in BUILT_IN else str(_path_of_data(name))
    return config.model_copy(update={"out": str(out), "base": str(base.resolve()), "data": data})


def _path_of_data(name: str) -> Path:
    """Return the ``.npz`` of a data set as :func:`fleet.har.sources.find` finds it."""
    path = Path(name)
    beside = Path(f"{path}.npz")
    if path.suffix in (".npz", ".json") or beside.is_file():
        found = path.with_suffix(".npz") if path.suffix in (".npz", ".json") else beside
        return found.resolve()
    for source in available():
        if source.name == name and source.path is not None:
            return source.path.resolve()
    raise DataError("data-unknown", f"there is no data set {name!r}", "See: fleet data list")
