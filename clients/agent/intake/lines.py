"""Lines of a byte stream in bounded blocks, with the position and digest behind each block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from clients.agent.store.records import Position
from fleet.errors import DataError

__all__ = ["BLOCK_BYTES", "LARGEST_LINE", "Block", "Tape"]

BLOCK_BYTES = 1 << 18
LARGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Block:
    """Whole lines.

    Attributes:
        lines: Without their ends; empty ones are left out.
        offset: Bytes of the stream up to the end of the last line.
        prefix: SHA-256 of those bytes.
    """

    lines: tuple[bytes, ...]
    offset: int
    prefix: bytes


class Tape:
    """A byte stream read from its start, or from where an earlier reading ended.

    Args:
        stream: Binary, at its start; a file, a pipe or a socket.
        name: For messages.
        block_bytes: Most bytes of one block; a pipe gives what is there.
    """

    def __init__(self, stream: BinaryIO, name: str, block_bytes: int = BLOCK_BYTES) -> None:
        self.name = name
        self._stream = stream
        self._block_bytes = block_bytes
        self._hash = hashlib.sha256()
        self._offset = 0
        self._rest = b""

    @property
    def unfinished(self) -> int:
        """Bytes after the last whole line."""
        return len(self._rest)

    def skip(self, position: Position) -> None:
        """Pass over what was taken in before.

        Raises:
            DataError: ``source-changed`` when these are not the same bytes any more.
        """
        left = position.offset - self._offset
        while left > 0 and (content := self._stream.read(min(left, self._block_bytes))):
            self._hash.update(content)
            left -= len(content)
        if left or self._hash.digest() != position.prefix:
            raise DataError(
                "source-changed",
                f"{self.name} begins like a source that was taken in up to byte {position.offset},"
                " but what lies before that byte is no longer the same",
                "Files may grow at their end; copy what is new to a file of its own.",
            )
        self._offset = position.offset

    def line(self) -> bytes:
        """Read one line, e.g. a header; empty at the end of the stream.

        Raises:
            DataError: ``line-too-long``.
        """
        content = self._stream.readline(LARGEST_LINE + 1)
        self._check(content)
        self._hash.update(content)
        self._offset += len(content)
        return content.rstrip(b"\r\n")

    def blocks(self, *, last_line: bool) -> Iterator[Block]:
        """Yield the rest of the stream.

        Args:
            last_line: Whether a last line without an end counts; in a file that something else
                still writes it may be half a number.

        Raises:
            DataError: ``line-too-long``.
        """
        read = getattr(self._stream, "read1", self._stream.read)
        while content := read(self._block_bytes):
            content = self._rest + content
            whole = content.rfind(b"\n") + 1
            self._rest = content[whole:]
            self._check(self._rest)
            if whole:
                yield self._block(content[:whole])
        if last_line and self._rest:
            content, self._rest = self._rest, b""
            yield self._block(content)

    def _block(self, content: bytes) -> Block:
        self._hash.update(content)
        self._offset += len(content)
        lines = tuple(line for line in content.split(b"\n") if line.strip())
        return Block(lines, self._offset, self._hash.digest())

    def _check(self, line: bytes) -> None:
        if len(line) > LARGEST_LINE:
            raise DataError(
                "line-too-long",
                f"{self.name}, byte {self._offset}: a line has more than {LARGEST_LINE} bytes",
                "Is it CSV or JSON lines? See: fleet-device ingest --help",
            )
