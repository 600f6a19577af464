"""The Ray cluster that a run computes on: one that is there already, or one of its own.

Ray itself waits more than three minutes for a cluster that is not there and then ends the process.
So we ask first, within a deadline, whether anything answers at the address.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import grpc
import ray

from fleet.errors import InputError, UnavailableError
from simulations.processes import MARKER, end

__all__ = ["ADDRESS_ENVIRONMENT", "RayCluster"]

ADDRESS_ENVIRONMENT = "RAY_ADDRESS"
CONNECT_TIMEOUT_S = 10.0
# A base, the messages of two rounds and the answers that are under way; Ray's least is 75 MB.
OBJECT_STORE_BYTES = 200_000_000
# Addresses that Ray resolves by itself, without waiting.
LOCAL, RUNNING = "local", "auto"
START_HINT = "Start one: ray start --head; then give its address with --ray-address HOST:6379."


class RayCluster:
    """A connection to a cluster; a process has one at a time, as Ray has it.

    Args:
        address: ``HOST:PORT`` of a cluster's head, ``auto`` for the one that runs on this machine,
            or ``local`` for one that is started here and ended by :meth:`close`; empty for
            ``RAY_ADDRESS``, and ``local`` where that is not set.
        cpus: Workers of a cluster that is started here.

    Raises:
        InputError: ``ray-address`` when the address is none, ``ray-in-use`` when this process is
            connected already.
        UnavailableError: ``ray-unreachable`` when nothing answers within ``CONNECT_TIMEOUT_S``,
            ``ray-refused`` when Ray there is another version or refuses, ``ray-no-cpus`` when the
            cluster has no CPU.
    """

    def __init__(self, address: str, cpus: int) -> None:
        if ray.is_initialized():
            text = "this process is connected to a Ray cluster already"
            raise InputError("ray-in-use", text, "Call ray.shutdown() first.")
        self.address = address or os.environ.get(ADDRESS_ENVIRONMENT, "") or LOCAL
        self._ends = ExitStack()
        try:
            self._connect(cpus)
            if self.cpus() < 1:
                raise UnavailableError(
                    "ray-no-cpus",
                    f"the Ray cluster at {self.address} has no CPU to train on",
                    "Add a node that has: ray start --address HOST:PORT.",
                )
        except BaseException:
            self.close()
            raise

    def cpus(self) -> int:
        """Return the CPUs of the nodes that are alive, busy or not."""
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return int(resources.get("CPU", 0))

    def close(self) -> None:
        """Leave the cluster, which ends all that this process runs on it; a local one is ended."""
        self._ends.close()

    def _connect(self, cpus: int) -> None:
        if self.address not in (LOCAL, RUNNING):
            _probe(self.address)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        marked: AbstractContextManager[object] = nullcontext()
        if self.address == LOCAL:
            options |= self._own(cpus)
            marked = self._marked()
        try:
            with marked, warnings.catch_warnings():
                self._ends.callback(ray.shutdown)
                # Of what later versions of Ray will do with accelerators; ours asks for none.
                warnings.simplefilter("ignore", FutureWarning)
                ray.init(address=self.address, **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UnavailableError(
                "ray-refused",
                f"no use can be made of the Ray cluster at {self.address}: {_first_line(error)}",
                START_HINT,
            ) from error

    def _own(self, cpus: int) -> dict[str, Any]:
        """Return the options of a cluster that leaves nothing behind."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's sockets lie in here, and a socket's path has at most 107 bytes.
        folder = tempfile.TemporaryDirectory(prefix="fleet-", ignore_cleanup_errors=True)
        return {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": self._ends.enter_context(folder),
        }

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """Mark what is started meanwhile: a Ray that is ended while it starts leaves agents behind.

        Where whoever started us ends all that carries a mark already, that mark stays.
        """
        if MARKER in os.environ:
            yield
            return
        run = os.environ[MARKER] = uuid.uuid4().hex
        self._ends.callback(end, run)
        try:
            yield
        finally:
            del os.environ[MARKER]


def _probe(address: str) -> None:
    """Tell apart, within the deadline, whether a server of gRPC answers at an address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise InputError(
            "ray-address",
            f"a Ray cluster's address is HOST:PORT, auto or local, not {address!r}",
            "The command ray start --head prints it.",
        )
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    try:
        with socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S):
            pass
        if os.environ.get("RAY_USE_TLS", "0") != "1":
            _greet(address, deadline)
    except (OSError, OverflowError, grpc.FutureTimeoutError) as error:
        reason = _first_line(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
        text = f"there is no Ray cluster at {address}: {reason}"
        raise UnavailableError("ray-unreachable", text, START_HINT) from error


def _greet(address: str, deadline: float) -> None:
    with grpc.insecure_channel(address) as channel:
        ready = grpc.channel_ready_future(channel)
        try:
            ready.result(timeout=max(0.1, deadline - time.monotonic()))
        finally:
            ready.cancel()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
