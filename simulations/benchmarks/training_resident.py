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
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.base import read_bundle, write_bundle
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame
from fleet.errors import RoundError
from fleet.measure.resident import ALLOCATOR_ENVIRONMENT, peak_bytes, require_linux, reset_peak
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from simulations.benchmarks.training_sides import Parts, Setting, batch_of, make_side

__all__ = ["MEASURED", "STEPS", "measure"]

# The sides whose resident memory is measured.
MEASURED = ("full", "core", "infer")
STEPS = 5
_TIMEOUT_S = 600
_FORMAT = "corefleet.resident.1"
_WEIGHT = "weight:"
_FRAME = "frame:"


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
            _write(path, name, setting, parts)
            before, peak = _spawn(path, ALLOCATOR_ENVIRONMENT)
            before_unset, peak_unset = _spawn(path, {})
            found[name] = {
                "resident_bytes": peak - before,
                "resident_bytes_unset": peak_unset - before_unset,
                "resident_before_bytes": before,
            }
    return found


def _write(path: Path, name: str, setting: Setting, parts: Parts) -> None:
    """Write what a side reads; what it never reads is left out, so it is not resident either."""
    network = parts.raw if name == "full" else parts.folded
    frames = parts.frames if name == "core" else {}
    tensors = {_WEIGHT + n: t.detach().numpy().copy() for n, t in network.state_dict().items()}
    tensors |= {_FRAME + n: frame.array for n, frame in frames.items()}
    record = {
        "format": _FORMAT,
        "name": name,
        "setting": asdict(setting) | {"config": setting.config.model_dump()},
        "frames": {n: [f.kind, f.rank, f.groups] for n, f in frames.items()},
    }
    write_bundle(path, tensors, record)


def _read(path: Path) -> Parts:
    """Build the one network that the side reads."""
    tensors, record = read_bundle(path, _FORMAT)
    raw = build(ModelConfig.model_validate(record["setting"]["config"])).eval()
    network = raw if record["name"] == "full" else fold(raw).requires_grad_(False)
    weights = {n.removeprefix(_WEIGHT): a for n, a in tensors.items() if n.startswith(_WEIGHT)}
    network.load_state_dict({n: torch.from_numpy(a) for n, a in weights.items()})
    frames = {
        name: Frame(kind, rank, groups, tensors[_FRAME + name])
        for name, (kind, rank, groups) in record["frames"].items()
    }
    absent = nn.Identity()
    return Parts(network, absent, {}) if network is raw else Parts(absent, network, frames)


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
    _, record = read_bundle(path, _FORMAT)
    config = ModelConfig.model_validate(record["setting"]["config"])
    setting = Setting(**(record["setting"] | {"config": config}))
    x, y = batch_of(setting)
    before = reset_peak()
    # Handed on without a name: what the side does not hold is freed.
    side = make_side(record["name"], setting, _read(path), x, y)
    reset_peak()  # building held the file and a second network for a moment
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
