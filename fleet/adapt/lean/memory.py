"""Memory of a step as the allocator saw it."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import profile

__all__ = ["dynamic_peak"]

_MEMORY_EVENT = "[memory]"


def dynamic_peak(step: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the most bytes that ``step`` held at once, beyond those held when it began.

    On a CPU these are the events of PyTorch's allocator in their order, oneDNN's scratch memory
    included, plus NumPy's and Python's own peak (packed bits live there); the two peaks are added
    though they need not coincide, so the figure errs upwards. On CUDA it is the caching
    allocator's own peak. Resident memory is another matter: it depends on the C library.

    Args:
        step: Runs twice, once to warm up.
        device: Where it computes.
    """
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return int(torch.cuda.max_memory_allocated(device)) - before
    # torch.profiler's own would import PyTorch's compiler, which is more than what a device trains.
    with _profiler_kept_quiet(), profile(profile_memory=True) as recorded:
        step()
    return _peak_of(recorded) + _python_peak(step)


@contextmanager
def _profiler_kept_quiet() -> Iterator[None]:
    """Send standard error nowhere: PyTorch's profiler writes its own comings and goings there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _peak_of(recorded: profile) -> int:
    results = recorded.kineto_results
    assert results is not None
    seen: list[Any] = [event for event in results.events() if event.name() == _MEMORY_EVENT]
    events: list[tuple[int, int]] = [(event.start_ns(), event.nbytes()) for event in seen]
    now, most = 0, 0
    # The sort is stable, and events of one instant come in their order.
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    return most


def _python_peak(step: Callable[[], object]) -> int:
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        step()
        return max(tracemalloc.get_traced_memory()[1] - before, 0)
    finally:
        if not running:
            tracemalloc.stop()
