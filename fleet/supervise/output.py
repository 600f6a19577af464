"""What a child prints: cut into bounded lines, kept in a bounded log."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from datetime import datetime
from pathlib import Path

__all__ = ["LINE_BYTES", "BoundedLog", "Lines", "Tail"]

LINE_BYTES = 16 * 2**10
TAIL_LINES = 40


class Lines:
    """Bytes in, whole lines out; a line beyond :data:`LINE_BYTES` is cut into several."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, chunk: bytes) -> list[str]:
        """Return the lines that ``chunk`` completes, without their ends."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        while len(self._rest) > LINE_BYTES:
            whole.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        return [_text(part) for line in whole for part in _parts(line)]

    def rest(self) -> list[str]:
        """Return what is left once nothing more comes."""
        left, self._rest = self._rest, b""
        return [_text(left)] if left else []


class Tail:
    """The newest lines of a child, for the reason of its end."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)

    def add(self, line: str) -> None:
        """Keep a line; the oldest goes."""
        self._lines.append(line)

    def newest_first(self) -> list[str]:
        """Return the lines, newest first."""
        return list(reversed(self._lines))

    def clear(self) -> None:
        """Forget all: another process prints now."""
        self._lines.clear()


class BoundedLog:
    """A log file and one older generation of it; the two hold ``cap_bytes`` at most.

    Args:
        path: The file; its older generation is ``path`` with ``.1`` added.
        cap_bytes: Most bytes of both.
    """

    def __init__(self, path: Path, cap_bytes: int) -> None:
        self.path = path
        self.older = path.with_name(path.name + ".1")
        self._cap_bytes = cap_bytes // 2
        self._file: int | None = None
        self._size = 0

    def write(self, at: datetime, line: str) -> None:
        """Append a line with its time; a full disk loses the line, not the device."""
        record = f"{at.isoformat(timespec='milliseconds')} {line}\n".encode(errors="replace")
        with suppress(OSError):
            file = self._file if self._file is not None else self._open()
            if self._size + len(record) > self._cap_bytes:
                self.close()
                os.replace(self.path, self.older)
                file = self._open()
            self._size += os.write(file, record)

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._file).st_size
        return self._file


def _parts(line: bytes) -> list[bytes]:
    return [line[at : at + LINE_BYTES] for at in range(0, len(line), LINE_BYTES)] or [b""]


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode(errors="replace")
