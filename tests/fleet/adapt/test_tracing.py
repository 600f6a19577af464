from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from torch import nn

from fleet.adapt.fold import fold
from fleet.models.config import ModelConfig
from fleet.models.registry import build


def test_networks_that_are_folded_at_once_leave_modules_as_they_were() -> None:
    before, workers = nn.Module.__call__, 4
    together = threading.Barrier(workers, timeout=30)
    config = ModelConfig(name="small-cnn", channels=3, classes=2, window=16)

    def work(_: int) -> int:
        together.wait()
        return sum(len(list(fold(build(config).eval()).parameters())) > 0 for _ in range(5))

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(work, range(workers))) == [5] * workers
    assert nn.Module.__call__ is before
