from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.adapt.base import Base
from fleet.har.population import Population
from tests.server.registry.conftest import file, memory, template
from tests.server.standing.doors import keyed, with_keys
from tests.server.standing.mute import Mute
from tests.server.standing.standing import Fleet, fleet_in
from tests.simulations.tiny_fleet import MakeConfig

__all__ = ["file", "memory", "template"]


@pytest.fixture
def fleet(
    file: Path, tiny_base: Base, tiny_people: Population, make_config: MakeConfig
) -> Iterator[Fleet]:
    """Three enrolled devices that train for real, the tiny base installed, and no policy yet."""
    with fleet_in(file, tiny_base, tiny_people, make_config()) as made:
        yield made


@pytest.fixture
def quick(fleet: Fleet) -> Fleet:
    """The same with devices that make their updates up."""
    fleet.devices.fast = True
    return fleet


@pytest.fixture
def mute(quick: Fleet) -> Mute:
    """Three devices with keys; each of them may fall silent."""
    made = Mute()
    keys = with_keys(quick, dict(enumerate(quick.devices.names)))
    quick.start(made.grid(keyed(keys)), keyed=True)
    return made


@pytest.fixture
def make(
    file: Path,
    tmp_path: Path,
    tiny_base: Base,
    tiny_people: Population,
    make_config: MakeConfig,
) -> Callable[[int], Any]:
    """Make a fleet of a number, each on a registry of its own."""

    def make(number: int) -> Any:
        copy = file.with_name(f"{number}.sqlite")
        shutil.copyfile(file, copy)
        return fleet_in(copy, tiny_base, tiny_people, make_config())

    return make
