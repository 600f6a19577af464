#!/usr/bin/env python3
"""Measure on a device what Corefleet costs it: latency, a round, memory, energy, time to a F1.

    /opt/corefleet/agent/bin/python scripts/measure_device.py --out measured.json

Run it with the agent's Python; it installs nothing, opens no connection and leaves no file but
``--out``. It measures the product's own code: the learner that answers plans, the network that is
served, and the sensors that the policy reads. What a machine cannot tell is null, never estimated.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from clients.agent.doctor.torch_op import try_torch
from clients.agent.learner import Learner
from clients.agent.power import combined, sources_of
from clients.agent.simulated import learner_of
from fleet.adapt.base import load_base, save_base
from fleet.adapt.state import CoreState
from fleet.config import RunConfig
from fleet.errors import FleetError
from fleet.federate.records import Plan
from fleet.har.population import population_of
from fleet.measure.f1 import macro_f1
from fleet.measure.resident import peak_bytes, reset_peak
from server.prepare import obtain_base

FORMAT = 1
WARM_UP = 20
# A reading takes half a second of tegrastats and may take ten of a sensor that hangs.
READING_PAUSE_S = 0.5
READING_LIMIT_S = 15.0
LARGEST_ROUNDS = 200


class Draw:
    """Power readings beside some work: ``with Draw(read) as draw: work()``.

    Args:
        read: Watts of the whole board, or None where no sensor tells.
    """

    def __init__(self, read: Callable[[], float | None]) -> None:
        self.watts: list[float] = []
        self.seconds = 0.0
        self._read = read
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Draw:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._end.set()
        self._thread.join(READING_LIMIT_S)

    def _loop(self) -> None:
        while not self._end.is_set():
            watts = self._read()
            if watts is None:
                return  # no sensor now, none later; asking costs time of its own
            if not self._end.is_set():
                self.watts.append(watts)
            self._end.wait(READING_PAUSE_S)

    def record(self) -> dict[str, Any]:
        """Return seconds, mean watts and joules; null without a reading."""
        mean = statistics.fmean(self.watts) if self.watts else None
        return {
            "seconds": self.seconds,
            "readings": len(self.watts),
            "mean_w": mean,
            "energy_j": None if mean is None else mean * self.seconds,
        }


def board_watts() -> float | None:
    """Return the board's draw by the product's own sensors."""
    return combined(sources_of()).power_w


def machine() -> dict[str, Any]:
    """Say what was measured on, by what; no name or address of the machine is in it."""
    model = Path("/proc/device-tree/model")
    release = Path("/etc/nv_tegra_release")
    return {
        "model": _text(model).rstrip("\0") or platform.machine(),
        "l4t": _text(release).partition("\n")[0],
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("corefleet", "torch", "numpy")},
        "readings": combined(sources_of()).record(),
    }


def latency(learner: Learner, state: CoreState, device: str, repeats: int) -> dict[str, Any]:
    """Time one window through the served network, milliseconds per call."""
    network = copy.deepcopy(learner.bench.served(state)).to(device)
    window = torch.from_numpy(learner.windows.test_x[:1]).to(device)
    times = []
    with torch.inference_mode():
        for repeat in range(-WARM_UP, repeats):
            start = time.perf_counter()
            network(window)
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat >= 0:
                times.append((time.perf_counter() - start) * 1e3)
    ordered = sorted(times)
    return {
        "device": device,
        "calls": repeats,
        "median_ms": statistics.median(ordered),
        "p95_ms": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
    }


def inferring(learner: Learner, state: CoreState, seconds: float) -> int:
    """Recognise one window after another for so long; return how many."""
    network, windows = learner.bench.served(state), 0
    x = torch.from_numpy(learner.windows.test_x[:1])
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            network(x)
            windows += 1
    return windows


def adapting(learner: Learner, given: argparse.Namespace) -> tuple[dict[str, Any], CoreState]:
    """Train round after round from the base alone, until the F1 is reached or rounds are over."""
    state = CoreState.zero(learner.bench.layout("core"))
    rounds: list[dict[str, float]] = []
    spent, reached = 0.0, None
    first = macro_f1(learner.evaluate(state))
    for number in range(1, given.rounds + 1):
        start = time.perf_counter()
        delta, result = learner.train(_plan(learner, state, number, given), state)
        state = state + delta
        learner.bench.served(state)
        seconds = time.perf_counter() - start
        spent += seconds
        score = macro_f1(learner.evaluate(state))
        rounds.append({"seconds": seconds, "loss": result.loss, "macro_f1": score})
        if reached is None and score >= given.target_f1:
            reached = spent
            break
    record = {
        "trained_on": "cpu",  # the learner's own choice, also beside an accelerator
        "train_windows": len(learner.windows.train_y),
        "test_windows": len(learner.windows.test_y),
        "macro_f1_before": first,
        "macro_f1_after": rounds[-1]["macro_f1"],
        "median_round_s": statistics.median(each["seconds"] for each in rounds),
        "target_f1": given.target_f1,
        "seconds_to_target": reached,
        "rounds": rounds,
    }
    return record, state


def measure(
    given: argparse.Namespace, watts: Callable[[], float | None] = board_watts
) -> dict[str, Any]:
    """Measure everything once.

    Raises:
        FleetError: For data or a base that cannot be used.
    """
    torch.set_num_threads(1)
    operation = try_torch()
    learner = _learner(given)
    zero = CoreState.zero(learner.bench.layout("core"))
    devices = ["cpu"]
    if operation["ok"] and operation.get("device", "cpu") != "cpu":
        devices.append("cuda")
    rested = reset_peak()
    with Draw(watts) as idle:
        time.sleep(given.seconds)
    with Draw(watts) as serving:
        recognised = inferring(learner, zero, given.seconds)
    after_inference = peak_bytes()
    with Draw(watts) as training:
        adaptation, state = adapting(learner, given)
    return {
        "format": FORMAT,
        "machine": machine(),
        "torch_operation": operation,
        "model": learner.bench.base.record.model.model_dump(mode="json"),
        "latency": [latency(learner, state, device, given.repeats) for device in devices],
        "adaptation": adaptation,
        "memory_bytes": {
            "at_rest": rested,
            "peak_inference": after_inference,
            "peak_training": peak_bytes(),
        },
        "energy": {
            "idle": idle.record(),
            "inference": {**serving.record(), "windows": recognised},
            "training": training.record(),
        },
    }


def table(found: dict[str, Any]) -> str:
    """Return the main figures, one a line."""
    lines = [
        ("machine", found["machine"]["model"]),
        ("torch", f"{found['torch_operation']['torch']}, {found['torch_operation']['device']}"),
    ]
    lines += [
        (f"one window on {each['device']}", f"{each['median_ms']:.2f} ms, p95 {each['p95_ms']:.2f}")
        for each in found["latency"]
    ]
    adaptation, memory = found["adaptation"], found["memory_bytes"]
    reached = adaptation["seconds_to_target"]
    lines += [
        (
            "one round",
            f"{adaptation['median_round_s']:.2f} s, {adaptation['train_windows']} windows",
        ),
        ("macro-F1", f"{adaptation['macro_f1_before']:.3f} to {adaptation['macro_f1_after']:.3f}"),
        (
            f"time to F1 {adaptation['target_f1']:g}",
            "not reached" if reached is None else f"{reached:.2f} s",
        ),
        *((f"memory, {name}", f"{size / 2**20:.0f} MiB") for name, size in memory.items()),
    ]
    for name, each in found["energy"].items():
        known = each["mean_w"] is not None
        text = f"{each['mean_w']:.2f} W, {each['energy_j']:.1f} J" if known else "no sensor tells"
        lines.append((f"power, {name}", text))
    return "\n".join(f"{name:<24} {text}" for name, text in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON and print the table; 0 when all went well."""
    given = _arguments(arguments)
    try:
        found = measure(given)
    except FleetError as error:
        print(f"error: {error.message}", error.hint, sep="\n", file=sys.stderr)
        return 1
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if given.format == "json" else table(found))
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Corefleet on this device.")
    parser.add_argument("--data", default="synthetic", help="canonical .npz, or synthetic")
    parser.add_argument("--base", default="", help="base file; without one it is trained first")
    parser.add_argument("--model", default="small-cnn", help="backbone of a base trained here")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--person", type=int, default=0, help="which person of the fleet")
    parser.add_argument("--rounds", type=int, default=20, help="most rounds of adaptation")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--target-f1", type=float, default=0.9)
    parser.add_argument("--base-epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=500, help="timed inferences")
    parser.add_argument("--seconds", type=float, default=30.0, help="of idling, then of inference")
    parser.add_argument("--out", default="", help="file for the JSON")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    given = parser.parse_args(arguments)
    if not 1 <= given.rounds <= LARGEST_ROUNDS:
        parser.error(f"--rounds is 1 to {LARGEST_ROUNDS}, not {given.rounds}")
    if given.repeats < 1 or given.seconds < 0:
        parser.error("--repeats is at least 1 and --seconds at least 0")
    return given


def _learner(given: argparse.Namespace) -> Learner:
    values = {"data": given.data, "model": given.model, "rank": given.rank, "base": given.base}
    config = RunConfig.parse({**values, "base_epochs": given.base_epochs, "batch": given.batch})
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(given.base or Path(scratch) / "base.safetensors")
        if not given.base:
            save_base(obtain_base(config, population_of(config)), path)
        model = load_base(path).record.model.name
        config = config.model_copy(update={"base": str(path), "model": model})
        return learner_of(config.for_flower(), given.person)


def _plan(learner: Learner, state: CoreState, number: int, given: argparse.Namespace) -> Plan:
    base = learner.bench.base
    return Plan(
        round=number,
        base=base.digest,
        frame=base.frame_digest,
        layout=state.layout.digest,
        release=number - 1,
        state=state.digest,
        method="core",
        rank=given.rank,
        epochs=1,
        batch=given.batch,
        optimiser="sgd",
        learning_rate=given.learning_rate,
        momentum=0.9,
        seed=0,
        weight_cap=4096,
        deadline_s=3600.0,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
