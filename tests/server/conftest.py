from __future__ import annotations

import pytest

from fleet.adapt.base import Base
from fleet.federate.releases import Release
from fleet.har.population import Population
from tests.server.running import LIAR, Setting
from tests.simulations.tiny_fleet import (
    MakeConfig,
    make_config,
    tiny_base,
    tiny_base_file,
    tiny_data,
    tiny_people,
)

__all__ = ["make_config", "tiny_base", "tiny_base_file", "tiny_data", "tiny_people"]


@pytest.fixture
def setting(tiny_base: Base, tiny_people: Population, make_config: MakeConfig) -> Setting:
    return Setting(tiny_base, tiny_people, make_config)


@pytest.fixture(scope="module")
def without_liar(tiny_base: Base, tiny_people: Population, make_config: MakeConfig) -> Release:
    """Release 1 of a fleet in which the liar was never there."""
    setting = Setting(tiny_base, tiny_people, make_config)
    return setting.run(setting.grid(offline={LIAR}), minimum=2).releases[-1]
