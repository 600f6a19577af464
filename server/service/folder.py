"""Where a server keeps its files, and how the secret ones are written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import InputError, StorageError
from fleet.files import atomic_path

__all__ = ["CONNECTION", "DEFAULT_FOLDER", "ServerFolder", "read_bytes", "write_private"]

DEFAULT_FOLDER = Path("~/.local/state/corefleet-server")
# The name under which `flwr` knows our SuperLink.
CONNECTION = "corefleet"
PRIVATE = 0o600
# Certificates, keys and secrets; a larger one is none.
MAX_BYTES = 256 * 2**10


@dataclass(frozen=True)
class ServerFolder:
    """The names of all files of a server.

    Args:
        path: Its folder, absolute; for its owner alone.
    """

    path: Path

    @property
    def config(self) -> Path:
        """What the operator decides."""
        return self.path / "server.toml"

    @property
    def authority(self) -> Path:
        """Certificate of the development authority; devices trust it."""
        return self.path / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Private key of the development authority."""
        return self.path / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate, signed by the development authority."""
        return self.path / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.path / "server.key"

    @property
    def superexec_secret(self) -> Path:
        """Without it nobody gets a task from the SuperLink."""
        return self.path / "superexec-secret"

    @property
    def database(self) -> Path:
        """The SuperLink's nodes, runs and messages."""
        return self.path / "superlink.db"

    @property
    def flower_home(self) -> Path:
        """Flower's home: the connection of ``flwr`` to our SuperLink."""
        return self.path / "flwr"

    @property
    def connection(self) -> Path:
        """Flower's own configuration with :data:`CONNECTION`."""
        return self.flower_home / "config.toml"

    @property
    def bundle(self) -> Path:
        """The app as ``flwr run`` takes it."""
        return self.path / "app"

    @property
    def runs(self) -> Path:
        """Results of runs that name no folder of their own."""
        return self.path / "runs"

    @property
    def standing(self) -> Path:
        """Which run is the fleet's standing service."""
        return self.path / "standing.json"

    @property
    def release_key(self) -> Path:
        """Private key that signs this fleet's releases."""
        return self.path / "release-key"

    @property
    def release_public(self) -> Path:
        """Public key of the releases' signatures; devices pin it."""
        return self.path / "release-key.pub"

    @property
    def secrets(self) -> tuple[Path, ...]:
        """What only the owner may read."""
        return (self.authority_key, self.key, self.superexec_secret, self.release_key)

    def make(self) -> None:
        """Make the folder, for its owner alone.

        Raises:
            StorageError: ``write-failed``.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.flower_home.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(
                "write-failed",
                f"{self.path} cannot be made ({error.strerror})",
                "Choose another folder: --folder DIR.",
            ) from error

    def check_made(self) -> None:
        """Refuse a folder without a server.

        Raises:
            InputError: ``no-server``.
        """
        if not self.config.is_file():
            raise InputError(
                "no-server",
                f"there is no server in {self.path}",
                "Make one: fleet server init, or name its folder: --folder DIR.",
            )


def write_private(path: Path, content: bytes) -> None:
    """Write a secret durably; at no time may anybody but the owner read it.

    Raises:
        StorageError: ``disk-full``, ``read-only`` or ``write-failed``.
    """
    with atomic_path(path) as temporary:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, PRIVATE), "wb") as file:
            file.write(content)


def read_bytes(path: Path) -> bytes:
    """Read a small file.

    Raises:
        StorageError: ``unreadable``, also for one beyond ``MAX_BYTES``.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StorageError(
            "unreadable", f"{path} could not be read ({error.strerror})", "See: fleet server doctor"
        ) from error
    if len(content) > MAX_BYTES:
        raise StorageError("unreadable", f"{path} has more than {MAX_BYTES} bytes", "")
    return content
