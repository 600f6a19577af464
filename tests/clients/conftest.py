from __future__ import annotations

from tests.simulations.tiny_fleet import (
    make_config,
    tiny_base,
    tiny_base_file,
    tiny_data,
    tiny_people,
)

__all__ = ["make_config", "tiny_base", "tiny_base_file", "tiny_data", "tiny_people"]
