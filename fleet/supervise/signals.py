"""Signals as something that a loop waits for, like any other input."""

from __future__ import annotations

import signal
import socket
from types import FrameType
from typing import Any

__all__ = ["Signals"]

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Signals:
    """Collects signals while the block runs; used in the main thread alone."""

    def __enter__(self) -> Signals:
        self._ours, theirs = socket.socketpair()
        self._theirs = theirs
        for end in (self._ours, theirs):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, _ignored) for number in WATCHED
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        self._ours.close()
        self._theirs.close()

    def fileno(self) -> int:
        """Return the descriptor that can be read when a signal came."""
        return self._ours.fileno()

    def take(self) -> list[int]:
        """Return the numbers of the signals that came, in their order."""
        try:
            return list(self._ours.recv(4096))
        except BlockingIOError:
            return []


def _ignored(number: int, frame: FrameType | None) -> None:
    """Python writes to the wakeup descriptor only for signals that have a handler."""
