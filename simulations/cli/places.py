"""Folders that a command makes for itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.errors import Interrupted

__all__ = ["temporary_place"]


@contextmanager
def temporary_place(prefix: str) -> Iterator[Path]:
    """Give a temporary folder that stays where its command fails, since its logs say why.

    Args:
        prefix: Of its name; short, because sockets in it have short paths.
    """
    made = Path(tempfile.mkdtemp(prefix=prefix))
    kept = False
    try:
        yield made
    except Exception as error:
        kept = not isinstance(error, Interrupted)  # nothing failed: somebody ended it
        raise
    finally:
        if not kept:
            shutil.rmtree(made, ignore_errors=True)
