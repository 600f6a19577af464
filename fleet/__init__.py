"""Corefleet's method: adapt, federate and merge tensor-train cores.

Nothing heavy is imported until it is used: ``import fleet`` needs no torch.

>>> import fleet
>>> fleet.Layout.of({"conv.core": (4, 2)}).size
8
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Base": "fleet.adapt.base",
    "CoreState": "fleet.adapt.state",
    "FleetError": "fleet.errors",
    "Frame": "fleet.adapt.frames",
    "Layout": "fleet.adapt.state",
    "ModelConfig": "fleet.models.config",
    "PartialSum": "fleet.federate.aggregate",
    "Plan": "fleet.federate.records",
    "Release": "fleet.federate.releases",
    "RunConfig": "fleet.config",
    "admit": "fleet.federate.admission",
    "attach": "fleet.adapt.attach",
    "build": "fleet.models.registry",
    "catch_up": "fleet.federate.releases",
    "find_data": "fleet.har.sources:find",
    "fold": "fleet.adapt.fold",
    "load_base": "fleet.adapt.base",
    "load_merged": "fleet.federate.served",
    "load_release": "fleet.federate.releases",
    "make_frame": "fleet.adapt.frames",
    "make_frames": "fleet.adapt.attach",
    "merge": "fleet.adapt.merge:merge",
    "next_release": "fleet.federate.releases",
    "register": "fleet.models.registry",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    place = _PUBLIC.get(name)
    if place is None:
        raise AttributeError(f"module 'fleet' has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
