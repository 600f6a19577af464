"""Windows to put into stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clients.agent.store import Caps, SplitRule, Store, WindowBatch, open_store

SHAPE = (2, 8)
SIZE = 2 * 8 * 4
TRAIN = SplitRule(kind="train")
NOW_S = 1_700_000_000.0
WITHOUT_PERSONAL = (
    "DROP TABLE personal_people; DROP TABLE personal;"
    "DROP TABLE personal_checkpoint_people; DROP TABLE personal_checkpoints;"
    "DROP TABLE fisher_people; DROP TABLE fishers;"
)


def batch(count: int, *, first: int = 0, seed: int = 0, dtype: str = "float32") -> WindowBatch:
    """Windows that start a second apart from ``first`` on."""
    random = np.random.default_rng([seed, first])
    start = np.arange(first, first + count, dtype=np.float64)
    signals = random.normal(size=(count, *SHAPE)).astype(dtype)
    return WindowBatch(start_s=start, end_s=start + 0.9, signals=signals)


def opened(folder: Path, caps: Caps | None = None) -> Store:
    return open_store(folder, clock=lambda: NOW_S, caps=caps)
