"""Who types: the name that the audit has of somebody at the server's own machine."""

from __future__ import annotations

import getpass
import os

__all__ = ["user"]


def user() -> str:
    """Return the operator's name; a container's user may have a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
