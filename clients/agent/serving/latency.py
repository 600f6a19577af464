"""Measure that serving costs nothing: the merged model beside its base, interleaved.

python -m clients.agent.serving.latency STATE [--repeats 200] [--windows 1]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.skeleton import direct
from clients.agent.serving.whole import open_best
from fleet.adapt.base import load_base
from fleet.adapt.network import folded_network, raw_network

__all__ = ["Latency", "main", "measure"]

WARM_UP = 20


@dataclass(frozen=True)
class Latency:
    """Medians over interleaved calls, milliseconds per call.

    Args:
        served: Which model was measured.
        windows: Windows per call.
        repeats: Calls of each.
        merged_ms: The served model.
        base_ms: The base with its batch norms folded: the same graph.
        raw_ms: The base as it was trained, with its batch norms.
        ratio: Median over the calls of merged / base, each pair measured side by side.
        ratio_spread: Lower and upper quartile of that ratio.
    """

    served: str
    windows: int
    repeats: int
    merged_ms: float
    base_ms: float
    raw_ms: float
    ratio: float
    ratio_spread: tuple[float, float]


def measure(state_dir: Path, *, repeats: int = 200, windows: int = 1) -> Latency:
    """Time what is served beside its base, on one thread.

    Raises:
        StorageError: When there is no base, or nothing to serve.
    """
    folder = ModelFolder(state_dir)
    base = load_base(folder.base_in_use())
    whole = open_best(folder).whole
    networks = [whole.network, direct(folded_network(base)), raw_network(base)]
    model = base.record.model
    random = torch.Generator().manual_seed(0)
    x = torch.randn(windows, model.channels, model.window, generator=random)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = _times(networks, x, repeats)
    finally:
        torch.set_num_threads(threads)
    merged, folded, raw = (float(t) for t in np.median(times, axis=0) * 1e3)
    low, ratio, high = (float(q) for q in np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75)))
    return Latency(whole.pointer.name, windows, repeats, merged, folded, raw, ratio, (low, high))


def _times(
    networks: Sequence[nn.Module], x: torch.Tensor, repeats: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return seconds ``(repeats, networks)``; the order turns, so that none is always first."""
    times = np.zeros((repeats, len(networks)))
    with torch.inference_mode():
        for repeat in range(-WARM_UP, repeats):
            for step in range(len(networks)):
                index = (repeat + step) % len(networks)
                start = time.perf_counter()
                networks[index](x)
                if repeat >= 0:
                    times[repeat, index] = time.perf_counter() - start
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one measurement as JSON."""
    parser = argparse.ArgumentParser(description="Latency of the served model beside its base.")
    parser.add_argument("state", type=Path)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--windows", type=int, default=1)
    given = parser.parse_args(arguments)
    print(json.dumps(asdict(measure(given.state, repeats=given.repeats, windows=given.windows))))


if __name__ == "__main__":
    main()
