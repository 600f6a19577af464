"""Who has the store open: many share it, one alone may set a damaged file aside."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from fleet.errors import StorageError

__all__ = ["Lease", "refusal"]


def refusal(path: Path, error: OSError) -> StorageError:
    """Say what the system refused: ``disk-full``, ``read-only`` or ``store-unopenable``."""
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("disk-full", f"no space left for {path}", "Free some space.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(
            "read-only",
            f"{path} may not be written ({why})",
            "Mount the disk writable, or name another --state folder.",
        )
    return StorageError(
        "store-unopenable",
        f"{path} cannot be opened: {why}",
        "Check that --state names a folder that this user can read and write.",
    )


class Lease:
    """A lock beside the store; the system lets go of it when the process ends, however it does.

    Args:
        path: The lock file; its content means nothing.

    Raises:
        StorageError: ``store-busy`` while another process repairs the store; see :func:`refusal`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise refusal(path, error) from error
        try:
            self._take(fcntl.LOCK_SH, "another process repairs it")
        except BaseException:
            self.close()
            raise

    def alone(self) -> None:
        """Make sure that no other process has the store open.

        Raises:
            StorageError: ``store-busy``.
        """
        self._take(fcntl.LOCK_EX, "it needs repair, but another process has it open")

    def shared(self) -> None:
        """Let others open it again."""
        self._take(fcntl.LOCK_SH, "another process repairs it")

    def close(self) -> None:
        """Let go; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, kind: int, why: str) -> None:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                "store-busy",
                f"the store {self._path.parent} cannot be opened: {why}",
                "Try again in a moment, or stop the other process: fleet-device status",
            ) from error
