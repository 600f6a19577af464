"""How many times faster than real time the intake is: ``python -m clients.agent.intake.bench``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from clients.agent.intake.sources import Form, ingest_file
from clients.agent.intake.spec import IntakeSpec
from clients.agent.store import open_store

__all__ = ["measure"]

COLUMNS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")


def measure(folder: Path, form: Form, minutes: float = 20.0, jitter_s: float = 0.002) -> float:
    """Write a recording of six channels at 50 Hz and take it in, store and flushes included.

    Args:
        folder: Empty; on the disk that is to be measured.
        form: ``csv`` or ``jsonl``.
        minutes: Length of the recording.
        jitter_s: Standard deviation of the time stamps; above 0 every sample is interpolated.

    Returns:
        Seconds of signal per second of wall time.
    """
    path = folder / f"recording.{form}"
    _write(path, form, int(minutes * 60 * 50), jitter_s)
    spec = IntakeSpec(columns=COLUMNS, factors=(1.0,) * 6, rate_hz=50.0, window=128, stride=64)
    with open_store(folder / form, clock=time.time) as store:
        begin = time.perf_counter()
        report = ingest_file(path, form, spec, store, "bench")
        wall_s = time.perf_counter() - begin
    if report.new < (report.samples - 128) // 64:
        raise RuntimeError(f"windows are missing: {report}")
    return minutes * 60 / wall_s


def _write(path: Path, form: Form, count: int, jitter_s: float) -> None:
    random = np.random.default_rng(0)
    jitter = np.clip(random.normal(0, jitter_s, count), -0.009, 0.009)
    times = (1.7e9 + np.arange(count) / 50 + jitter).tolist()
    values = random.normal(0, 3, (count, 6)).astype(np.float32).tolist()
    with open(path, "w", encoding="utf-8") as file:
        if form == "csv":
            file.write(",".join(("time", *COLUMNS)) + "\n")
            file.writelines(
                ",".join(map(repr, (at, *row))) + "\n"
                for at, row in zip(times, values, strict=True)
            )
            return
        for at, row in zip(times, values, strict=True):
            named = dict(zip(COLUMNS, row, strict=True))
            file.write(json.dumps({"time": at, **named}) + "\n")


def main() -> None:
    """Print the ratio of each form."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        forms: tuple[Form, ...] = ("csv", "jsonl")
        for form in forms:
            print(f"{form}: {measure(Path(folder), form):.0f} × real time")


if __name__ == "__main__":
    main()
