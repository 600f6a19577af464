from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.metrics.exporter import Exporter
from server.metrics.http import Door
from server.registry import Registry
from tests.server.control.conftest import clock, file, memory, registry, releases, template
from tests.server.registry.filled import Clock

__all__ = ["clock", "file", "memory", "registry", "releases", "template"]


@pytest.fixture
def exporter(registry: Registry, clock: Clock) -> Exporter:
    return Exporter(registry, clock)


@pytest.fixture
def door(exporter: Exporter) -> Iterator[Door]:
    with Door("127.0.0.1", 0, exporter) as door:
        yield door
