"""Ray clusters of two nodes on loopback for tests, and the certainty that none outlives them."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from simulations.processes import end, processes_of
from tests.flower_processes import MARKER

__all__ = ["LoopbackCluster", "loopback_cluster", "marked", "wait_until_gone"]

END_TIMEOUT_S = 20.0
OBJECT_STORE_BYTES = 80_000_000
# A node that was killed is missed after seconds, not after Ray's thirty: its port refuses at once.
# One that is merely slow, as while other tests use both cores, has longer to answer.
SETTINGS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500} | {
    "health_check_failure_threshold": 5,
    "health_check_timeout_ms": 10_000,
}
STARTS = 2  # Ray gives its own processes fixed times to start in, which a busy machine exceeds


class LoopbackCluster:
    """Nodes of one CPU each.

    Args:
        folder: Where Ray keeps its sessions.
    """

    def __init__(self, folder: str) -> None:
        node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
        head = {"include_dashboard": False, "_system_config": SETTINGS, "temp_dir": folder}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={**node, **head})
        self._second = self._cluster.add_node(**node)
        self._cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return str(self._cluster.address)

    def kill_second(self) -> None:
        """End the second node without a word, with all that runs on it."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def loopback_cluster() -> Iterator[LoopbackCluster]:
    """Start two nodes; end them, and see that every process of theirs ends."""
    # Ray's sockets lie under this folder and a socket's path is at most 107 bytes long.
    folder = tempfile.mkdtemp(prefix="fleet-")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # The address of the last cluster is kept below here, in a folder that nobody else makes:
        # the machine's own is not there before the first Ray, and its other users read it.
        os.mkdir(os.path.join(folder, "ray"))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("RAY_TMPDIR", folder)
        with marked() as marker:
            stack.callback(end, marker, variable=MARKER)
            cluster = _started(folder, marker)
        try:
            yield cluster
        finally:
            cluster.close()
        wait_until_gone(marker)


def _started(folder: str, marker: str) -> LoopbackCluster:
    for _ in range(STARTS - 1):
        with contextlib.suppress(Exception):
            return LoopbackCluster(folder)
        end(marker, variable=MARKER)
    return LoopbackCluster(folder)


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """Mark the processes that are started meanwhile; yield what they are known by."""
    marker = uuid.uuid4().hex
    own = {MARKER: marker, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        yield marker


def wait_until_gone(marker: str) -> None:
    """Wait until no process with a marker is left."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while alive := processes_of(marker, MARKER) - {os.getpid()}:
        assert time.monotonic() < deadline, f"processes outlive their cluster: {sorted(alive)}"
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(min(alive))
            select.select([handle], [], [], 1.0)
            os.close(handle)
