from __future__ import annotations

import pytest

try:
    from tests.simulations.tiny_fleet import (
        make_config,
        tiny_base,
        tiny_base_file,
        tiny_data,
        tiny_people,
    )
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise

    @pytest.fixture(scope="session")
    def tiny_base_file() -> None:
        pytest.skip("needs torch, which this interpreter lacks")

    make_config = tiny_base = tiny_data = tiny_people = tiny_base_file

__all__ = ["make_config", "tiny_base", "tiny_base_file", "tiny_data", "tiny_people"]
