from __future__ import annotations

from tests.fleet.continual.timelines import dataset, population

__all__ = ["dataset", "population"]
