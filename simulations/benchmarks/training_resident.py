"""Resident memory of training: what the operating system gives to a process for five steps.

Each side runs in a fresh process on one thread, twice: with glibc's allocator as it comes, and with
:data:`fleet.measure.resident.ALLOCATOR_ENVIRONMENT`. The figure is the peak resident set of five
steps less what was resident before the network was loaded, that is after the imports and the data.
So it counts parameters, gradients, optimiser state, activations, scratch memory, and what the
allocator does not hand back.

Imports end with one step of a layer of its own: PyTorch imports its compiler when the first
optimiser is made, and maps its kernels when they first run. That takes about 100 MB in any process
that trains, and has nothing to do with how it trains.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from fleet.errors import RoundError
from fleet.measure.resident import ALLOCATOR_ENVIRONMENT, peak_bytes, require_linux, reset_peak
from simulations.benchmarks.training_sides import Parts, Setting, batch_of, make_side

__all__ = ["MEASURED", "STEPS", "measure"]

# The sides whose resident memory is measured.
MEASURED = ("full", "core", "infer")
STEPS = 5
_TIMEOUT_S = 600


def measure(setting: Setting, parts: Parts) -> dict[str, dict[str, int]]:
    """Measure each of :data:`MEASURED`.

    Returns:
        By side ``resident_bytes`` with the allocator's thresholds set, ``resident_bytes_unset``
        without, and ``resident_before_bytes``, what imports and data take with the thresholds set.

    Raises:
        UnavailableError: ``resident-unmeasurable`` where there are no such counters.
    """
    require_linux()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MEASURED:
            path = Path(folder) / name
            work = (pickle.dumps(part) for part in ((name, setting), _needed(name, parts)))
            path.write_bytes(b"".join(work))
            before, peak = _spawn(path, ALLOCATOR_ENVIRONMENT)
            before_unset, peak_unset = _spawn(path, {})
            found[name] = {
                "resident_bytes": peak - before,
                "resident_bytes_unset": peak_unset - before_unset,
                "resident_before_bytes": before,
            }
    return found


def _needed(name: str, parts: Parts) -> Parts:
    """Leave out what a side never reads, so that it is not resident either."""
    if name == "full":
        return replace(parts, folded=nn.Identity(), frames={})
    return replace(parts, raw=nn.Identity(), frames=parts.frames if name == "core" else {})


def _spawn(path: Path, allocator: Mapping[str, str]) -> tuple[int, int]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(path)],
        env={**kept, **allocator},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RoundError("resident-failed", f"the process that trains {path.name} failed: {last}")
    before, peak = json.loads(done.stdout)
    return before, peak


def _train(path: Path) -> tuple[int, int]:
    """Return the bytes resident before the network is loaded, and the most while it trains."""
    torch.set_num_threads(1)
    _first_step()
    with path.open("rb") as file:
        name, setting = pickle.load(file)
        x, y = batch_of(setting)
        before = reset_peak()
        # Handed on without a name: what the side does not hold is freed.
        side = make_side(name, setting, pickle.load(file), x, y)
    for _ in range(STEPS):
        side.step()
    return before, peak_bytes()


def _first_step() -> None:
    """Make PyTorch import and map what it does on first use."""
    layer = nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten())
    stepper = torch.optim.Adam(layer.parameters())
    loss = functional.cross_entropy(layer(torch.zeros(2, 8, 9)), torch.zeros(2, dtype=torch.int64))
    loss.backward()  # type: ignore[no-untyped-call]
    stepper.step()


if __name__ == "__main__":
    print(json.dumps(_train(Path(sys.argv[1]))))
