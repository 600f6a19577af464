"""Nodes with keys, enrolled and not."""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.flower import NodeInfo
from simulations.inprocess import InProcessGrid
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Fleet

PEM = serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
SSH = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH


def pair() -> tuple[bytes, str]:
    """Return a public key as Flower's nodes have it, and as an operator enrolls it."""
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(PEM, SPKI), public.public_bytes(*SSH).decode() + " someone@lab"


def keyed(keys: dict[int, bytes]) -> type[InProcessGrid]:
    """Return a grid whose nodes have keys, by partition."""

    class Keyed(InProcessGrid):
        def get_nodes(self) -> list[NodeInfo]:
            found = super().get_nodes()
            for info in found:
                info.public_key = keys.get(self._partitions[info.node_id], b"")
            return found

    return Keyed


def with_keys(fleet: Fleet, names: dict[int, str]) -> dict[int, bytes]:
    """Enroll devices anew by real keys; return the keys that their nodes have."""
    keys = {}
    for partition, name in names.items():
        keys[partition], line = pair()
        fleet.registry.devices.revoke(name, why="a real key", actor=OPERATOR)
        fleet.registry.devices.enroll(name, line, actor=OPERATOR)
    return keys
