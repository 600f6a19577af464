"""A fleet of three people with few windows, and a base for it that is trained once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fleet.adapt.base import Base, load_base, save_base
from fleet.config import RunConfig
from fleet.har import canonical, synthetic
from fleet.har.population import Population, population_of
from server.prepare import obtain_base

PEOPLE = 6
RATE = 0.05

MakeConfig = Callable[..., RunConfig]


@cache
def _data_in(session: Path) -> Path:
    path = session / "tiny-fleet" / "tiny.npz"
    canonical.write(synthetic.make(people=PEOPLE, windows_per_activity=6), path)
    return path


@cache
def _base_in(session: Path) -> Path:
    data = _data_in(session)
    config = RunConfig.parse({"data": str(data), "base_epochs": 15, "rank": 2})
    path = data.with_name("base.safetensors")
    save_base(obtain_base(config, population_of(config)), path)
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A canonical synthetic data set of six people; three of them are the fleet."""
    return _data_in(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of rank 2, trained for a few epochs on the three source people."""
    return _base_in(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_base(tiny_base_file: Path) -> Base:
    return load_base(tiny_base_file)


@pytest.fixture(scope="session")
def make_config(tiny_data: Path, tiny_base_file: Path) -> MakeConfig:
    """Make a run of two rounds from the tiny base; ``changes`` override any value."""

    def make(**changes: Any) -> RunConfig:
        fields: dict[str, Any] = {
            "data": str(tiny_data),
            "base": str(tiny_base_file),
            "rank": 2,
            "rounds": 2,
            "learning_rate": RATE,
            "batch": 16,
        }
        return RunConfig.parse({**fields, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_people(make_config: MakeConfig) -> Population:
    return population_of(make_config())
