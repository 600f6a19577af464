"""Flower's Control API as the operator uses it: nodes are made, listed and removed.

It has no authentication of its own, so it is reached over loopback alone; see ``docs/operate.md``.
Like :mod:`server.flower` this module holds private names of Flower, and
``tests/server/test_flower_control_contract.py`` holds it to them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

from fleet.errors import FleetError, InputError
from server.service.folder import read_bytes

__all__ = ["Control", "Node", "UnreachableError", "control_of", "public_key_of"]

TIMEOUT_S = 30.0
STATES = {
    NodeStatus.REGISTERED: "enrolled",
    NodeStatus.ONLINE: "online",
    NodeStatus.OFFLINE: "offline",
    NodeStatus.UNREGISTERED: "revoked",
}


class UnreachableError(FleetError):
    """The server does not answer, or refuses to."""

    exit_code = 2


@dataclass(frozen=True)
class Node:
    """A device as the SuperLink knows it.

    Args:
        node_id: Flower's id.
        name: The operator's name; ``""``: none.
        state: ``enrolled`` (never seen), ``online``, ``offline`` or ``revoked``.
        enrolled_at: ISO 8601, UTC.
        seen_at: When it last came online or went; ``""``: never.
        key: Its public key, PEM.
    """

    node_id: int
    name: str
    state: str
    enrolled_at: str
    seen_at: str
    key: bytes


class Control:
    """The SuperLink's Control API; use :func:`control_of`."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def nodes(self) -> list[Node]:
        """Return all nodes, the revoked among them, oldest first.

        Raises:
            UnreachableError: ``superlink-away`` or ``superlink-refused``.
        """
        with _told():
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        nodes = [
            Node(
                node_id=node.node_id,
                name=node.name,
                state=STATES.get(node.status, node.status),
                enrolled_at=node.registered_at,
                seen_at=max(node.last_activated_at, node.last_deactivated_at),
                key=node.public_key,
            )
            for node in found
        ]
        return sorted(nodes, key=lambda node: node.enrolled_at)

    def enroll(self, key: bytes, name: str) -> int:
        """Make a node of a public key; return its id.

        Args:
            key: What :func:`public_key_of` returned.
            name: The operator's name of the device.

        Raises:
            UnreachableError: ``superlink-away`` or ``superlink-refused``.
        """
        with _told():
            return self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id

    def revoke(self, node_id: int) -> None:
        """Refuse a node from now on; its key cannot be enrolled again.

        Raises:
            UnreachableError: ``superlink-away`` or ``superlink-refused``.
        """
        with _told():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def run_state(self, run_id: int) -> str:
        """Return how a run stands: ``pending``, ``starting``, ``running``, ``finished:HOW``.

        HOW is ``completed``, ``failed`` or ``stopped``.

        Raises:
            UnreachableError: ``superlink-away``; ``superlink-refused`` also for an unknown run.
        """
        with _told():
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in runs:
            raise UnreachableError("superlink-refused", f"the SuperLink knows no run {run_id}", "")
        status = runs[run_id].status
        return f"{status.status}:{status.sub_status}" if status.sub_status else status.status

    def runs_with(self, key: str, value: str) -> list[int]:
        """Return the runs that have not finished and were started with a value of a key.

        Raises:
            UnreachableError: ``superlink-away`` or ``superlink-refused``.
        """
        with _told():
            runs = self._client.ListRuns(ListRunsRequest()).run_dict
        return [
            run_id
            for run_id, run in sorted(runs.items())
            if run.status.status != "finished"
            and key in run.override_config
            and run.override_config[key].string == value
        ]

    def stop_run(self, run_id: int) -> None:
        """End a run.

        Raises:
            UnreachableError: ``superlink-away``; ``superlink-refused`` also for one that ended.
        """
        with _told():
            self._client.StopRun(StopRunRequest(run_id=run_id))


@contextmanager
def control_of(address: str, authority: Path) -> Iterator[Control]:
    """Open the Control API of the SuperLink at ``HOST:PORT``.

    Args:
        address: On loopback.
        authority: Certificate (PEM) of whoever signed its own.

    Raises:
        StorageError: ``unreadable``.
    """
    trust = ssl.create_default_context(cadata=read_bytes(authority).decode("ascii"))
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    client = ControlHttpClient(f"https://{address}", interceptors=[version], verify=trust)
    client._client.close()
    # No proxy of the environment may come between.
    client._client = httpx.Client(verify=trust, timeout=TIMEOUT_S, trust_env=False)
    try:
        yield Control(client)
    finally:
        client.close()


def public_key_of(line: bytes) -> bytes:
    """Return the public key (PEM) of a line as OpenSSH writes it.

    Raises:
        InputError: ``public-key`` for one that is none, or not of a NIST curve.
    """
    try:
        key = serialization.load_ssh_public_key(line)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not uses_nist_ec_curve(key):
        raise _no_key("it is of no NIST curve")
    return public_key_to_bytes(key)


def _no_key(why: str) -> InputError:
    return InputError(
        "public-key",
        f"that is no public key of a device: {why}",
        "Give the file node-key.pub of the device's state directory, or its line.",
    )


@contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong on the way into errors of ours."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        told = FlowerError.from_json(error.response.text)
        why = str(told) if told is not None else f"HTTP status {error.response.status_code}"
        raise UnreachableError("superlink-refused", f"the SuperLink refused: {why}", "") from error
    except httpx.TransportError as error:
        raise UnreachableError(
            "superlink-away",
            f"the SuperLink does not answer ({type(error).__name__})",
            "Start the server first: fleet server up",
        ) from error
