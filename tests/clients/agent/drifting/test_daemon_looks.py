from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

from clients.agent.config import save_config
from clients.agent.daemon import served_agent
from clients.agent.drifting.kept import window_cursor_of
from clients.agent.store import open_reader, open_store
from tests.clients.agent.answering.devices import NOON
from tests.clients.agent.drifting.streams import add, config_of


def test_the_daemon_looks_for_drift_at_its_stated_times(state: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="cf-") as short:
        folder = Path(shutil.copytree(state, Path(short) / "state"))
        save_config(config_of(), folder)
        folder.chmod(0o700)
        with open_store(folder, clock=NOON.timestamp) as store:
            add(store, 150)
        stopping = threading.Event()
        with served_agent(folder, stopping) as chores:
            chores()
        with open_reader(folder, clock=NOON.timestamp) as store:
            assert window_cursor_of(store) == 150
