"""The SuperLink's node keys as the verbs see them; Flower is imported when one is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.errors import InputError
from server.registry.keys import NEW_KEY

if TYPE_CHECKING:
    from server.flower_control import Control, Node

__all__ = ["SuperLinkNodes"]

REVOKED = "revoked"


class SuperLinkNodes:
    """Keys that a SuperLink lets in; see :class:`server.control.verbs.fleet.Nodes`.

    Args:
        address: Of the SuperLink, on loopback.
        authority: Certificate (PEM) of whoever signed its own.
    """

    def __init__(self, address: str, authority: Path) -> None:
        self._address = address
        self._authority = authority

    def links(self) -> Mapping[str, str]:
        """Return how each device stands: ``enrolled`` (never came), ``online`` or ``offline``."""
        with self._control() as control:
            return {node.name: node.state for node in control.nodes() if node.state != REVOKED}

    def check(self, public_key: str, device: str) -> None:
        """Refuse a key that is another's or was revoked, and a name that has another key."""
        from server.flower_control import public_key_of

        key = public_key_of(public_key.encode())
        with self._control() as control:
            _check_free(control.nodes(), device, key)

    def enroll(self, public_key: str, device: str) -> str:
        """Let in a key, unless it is in already; return the node's id."""
        from server.flower_control import public_key_of

        key = public_key_of(public_key.encode())
        with self._control() as control:
            nodes = control.nodes()
            _check_free(nodes, device, key)
            there = [node.node_id for node in nodes if node.key == key]
            return str(there[0] if there else control.enroll(key, device))

    def revoke(self, public_key: str, device: str) -> None:
        """Refuse a key from now on, unless it is refused already or was never there."""
        from server.flower_control import public_key_of

        key = public_key_of(public_key.encode())
        with self._control() as control:
            for node in control.nodes():
                if node.key == key and node.state != REVOKED:
                    control.revoke(node.node_id)

    @contextmanager
    def _control(self) -> Iterator[Control]:
        from server.flower_control import control_of

        with control_of(self._address, self._authority) as control:
            yield control


def _check_free(nodes: list[Node], device: str, key: bytes) -> None:
    for node in nodes:
        same = node.name == device and node.state != REVOKED
        if node.key == key and not same:
            again = "; a revoked key stays revoked" if node.state == REVOKED else ""
            raise InputError(
                "key-known",
                f"that key is {node.name or node.node_id}'s ({node.state}){again}",
                f"{NEW_KEY}; see also: fleet device list --all",
            )
        if same and node.key != key:
            raise InputError(
                "name-taken",
                f"{device} is enrolled already, with another key",
                f"Choose another name, or first: fleet device revoke {device}",
            )
