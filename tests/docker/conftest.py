from __future__ import annotations

from tests.simulations.tiny_fleet import tiny_base_file, tiny_data

__all__ = ["tiny_base_file", "tiny_data"]
