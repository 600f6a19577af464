from __future__ import annotations

import pytest

from server.service.folder import ServerFolder
from tests.server.service.fronting import made_folder


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> ServerFolder:
    """A server that was made; no test changes it."""
    return made_folder(tmp_path_factory.mktemp("server") / "folder")
