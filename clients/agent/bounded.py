"""Call what may hang, and stop waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["within"]

T = TypeVar("T")


def within(limit_s: float, call: Callable[[], T]) -> tuple[bool, T | None]:
    """Call in a thread of its own and wait at most ``limit_s`` seconds.

    Returns:
        Whether it ended in time, and what it returned. A call that hangs goes on in a daemon
        thread: Python cannot stop it, but nothing waits for it, the end of the process included.

    Raises:
        Exception: What the call raised.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="corefleet-bounded", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    return bool(results), results[0] if results else None
