"""Run a small command for its first line, in bounded time."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

__all__ = ["LINE_BYTES", "LineOf", "first_line"]

# (command, seconds) -> its first line of output; None when there is none in time.
LineOf = Callable[[Sequence[str], float], "str | None"]

LINE_BYTES = 16 * 2**10


def first_line(command: Sequence[str], limit_s: float) -> str | None:
    """Return the first line that ``command`` prints, and end it.

    ``tegrastats`` prints for ever, so the command is ended once a line is there.

    Args:
        command: Program and arguments; looked up in ``PATH``.
        limit_s: Seconds to wait for the line.

    Returns:
        The line without its end; ``None`` when the program is absent, silent or too slow.
    """
    if shutil.which(command[0]) is None:
        return None
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError:
        return None
    try:
        assert process.stdout is not None
        return _read_line(process.stdout.fileno(), time.monotonic() + limit_s)
    finally:
        _end(process)


def _read_line(descriptor: int, deadline: float) -> str | None:
    text = b""
    while b"\n" not in text and len(text) < LINE_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        chunk = os.read(descriptor, 4096)
        if not chunk:
            break
        text += chunk
    line = text.split(b"\n", 1)[0].decode(errors="replace").strip()
    return line or None


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    if process.stdout is not None:
        process.stdout.close()
