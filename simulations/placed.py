"""A run's base and data named so that another process, wherever it works, finds the same."""

from __future__ import annotations

from pathlib import Path

from fleet.config import RunConfig
from fleet.har.sources import default_name, locate

__all__ = ["placed"]


def placed(config: RunConfig) -> RunConfig:
    """Return a configuration with whole paths of base, data and results.

    What an empty name of a data set stands for depends on what a machine holds, so it is decided
    here. Data that is generated keeps its name.

    Raises:
        DataError: See :func:`fleet.har.sources.locate`.
    """
    out = Path(config.out).resolve()
    base = Path(config.base) if config.base else out / "base.safetensors"
    name = config.data or default_name()
    found = locate(name)
    data = name if found is None else str(found.resolve())
    return config.model_copy(update={"out": str(out), "base": str(base.resolve()), "data": data})
