from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.agent.driven import folder_in_memory


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the copies of a device go that is cut off."""
    with folder_in_memory() as place:
        yield place / "devices"
