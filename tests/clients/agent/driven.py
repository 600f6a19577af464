"""Drivers in processes of their own, which are killed at chosen points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DEADLINE_S", "folder_in_memory", "found_by"]

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 3000


def found_by(module: str, *words: object, limit_s: float = DEADLINE_S) -> dict[str, Any]:
    """Run a driver by its module; return what its last line says in JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: what a kill spares does not depend on the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)
