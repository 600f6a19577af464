"""What the verbs work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server.registry import Registry

__all__ = ["Fleet", "Nodes"]


class Nodes(Protocol):
    """The keys that the transport lets in; a change does nothing when it is so already."""

    def links(self) -> Mapping[str, str]:
        """Return how each device stands: ``enrolled`` (never came), ``online`` or ``offline``.

        Raises:
            FleetError: The transport does not answer.
        """

    def check(self, public_key: str, device: str) -> None:
        """Refuse a key or a name that the transport could not take, before anything is kept.

        Raises:
            FleetError: ``public-key``, ``key-known``, ``name-taken``; the transport is away.
        """

    def enroll(self, public_key: str, device: str) -> str:
        """Let in whoever has the private half of an OpenSSH line; return the transport's id.

        Raises:
            FleetError: The transport does not answer, or refuses.
        """

    def revoke(self, public_key: str, device: str) -> None:
        """Refuse it from now on.

        Raises:
            FleetError: The transport does not answer, or refuses.
        """


@dataclass(frozen=True)
class Fleet:
    """A fleet as its operators see it.

    Args:
        registry: The durable truth.
        clock: Seconds since the epoch.
        nodes: The transport's keys; None where there is no transport.
        release_public: Public key (PEM) of its signatures; None where releases are not signed.
        backups: Folder of backups, in the server's own; None where none may be taken.
    """

    registry: Registry
    clock: Callable[[], float]
    nodes: Nodes | None = None
    release_public: bytes | None = None
    backups: Path | None = None
