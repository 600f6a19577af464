"""Your own data and model: CSV recordings become a data set, a module of yours learns it.

    python simulations/experiments/own_data_and_model.py                    # some seconds
    python simulations/experiments/own_data_and_model.py --csv MY_FOLDER    # on yours

MY_FOLDER holds one file per recording, PERSON-ANYTHING.csv with PERSON a number: a column per
channel, evenly sampled in time, and a column `activity`. Edit CHANNELS and RATE_HZ. Without it,
recordings are made up; expect the fleet's macro-F1 on them to rise from .48 to .83.
"""

import argparse
import csv
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fleet import ModelConfig, RunConfig, register
from fleet.har.canonical import Channel, DataSet, quantise, write
from fleet.har.windows import segment
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate

CHANNELS = tuple(Channel(f"acc_{axis}", "m/s^2") for axis in "xyz")
RATE_HZ, WINDOW, STRIDE = 50.0, 128, 64


class Mine(nn.Module):
    """A network: convolution, its batch norm, non-linearity, …, and a Linear called `head`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.channels, 24, 9, stride=2, padding=4, bias=False)
        self.norm1 = nn.BatchNorm1d(24)
        self.conv2 = nn.Conv1d(24, 48, 5, padding=2, bias=False)
        self.norm2 = nn.BatchNorm1d(48)
        self.relu = nn.ReLU()
        self.head = nn.Linear(48, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of windows ``(batch, channels, window)``."""
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        logits: torch.Tensor = self.head(x.mean(dim=-1))
        return logits


def make_up(folder: Path, people: int) -> None:
    """Write recordings of people who rest, stroll or run, each in a way and at a pace of theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    for person in range(people):
        rng = np.random.default_rng(person)
        lines, pace, phase = [], rng.normal(1, 0.1), rng.uniform(0, 6, 3)
        for activity, hz, size in (("rest", 0.3, 0.2), ("stroll", 1.7, 2.0), ("run", 2.6, 4.0)):
            seconds = np.arange(WINDOW * 10)[:, None] / RATE_HZ
            xyz = size * np.sin(2 * np.pi * hz * pace * seconds + phase) + [9.8, 0, 0]
            rows = xyz + rng.normal(0, 0.8, xyz.shape)
            lines += [",".join([*(f"{value:.3f}" for value in row), activity]) for row in rows]
        text = "\n".join(["acc_x,acc_y,acc_z,activity", *lines])
        (folder / f"{person}-day.csv").write_text(text)


def read(folder: Path) -> DataSet:
    """Cut all recordings of a folder into windows of one activity each."""
    x, y, subject, rec = [], [], [], []
    for number, path in enumerate(sorted(folder.glob("*.csv"))):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for activity, run in groupby(rows, key=lambda row: row["activity"]):
            samples = np.array([[float(row[c.name]) for c in CHANNELS] for row in run])
            windows = segment(samples, WINDOW, STRIDE)
            x.append(windows)
            y += [activity] * len(windows)
            subject += [int(path.stem.partition("-")[0])] * len(windows)
            rec += [number] * len(windows)
    labels, classes = np.unique(y, return_inverse=True)
    steps, scale = quantise(np.concatenate(x))
    integers = classes.astype(np.int16), np.array(subject, np.int16), np.array(rec, np.int32)
    shape = RATE_HZ, WINDOW, STRIDE
    return DataSet("mine", tuple(map(str, labels)), CHANNELS, *shape, steps, scale, *integers)


arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
arguments.add_argument("--toy", action="store_true", help="fewer people and rounds")
arguments.add_argument("--csv", type=Path, help="folder of recordings; default: made up")
arguments.add_argument("--out", type=Path, default=Path("runs/mine"))
chosen = arguments.parse_args()
if not chosen.csv:
    make_up(chosen.out / "csv", people=8 if chosen.toy else 20)
write(read(chosen.csv or chosen.out / "csv"), chosen.out / "mine.npz")
register("mine", Mine)
where = {"data": str(chosen.out / "mine.npz"), "out": str(chosen.out)}
how = {"model": "mine", "rank": 2, "batch": 8, "rounds": 3 if chosen.toy else 8}
config = RunConfig.parse({**where, **how})
report = simulate(open_run(Run(config, ("core",), {"core": 0.1}), resume=False), Silent())
print(f"before {report['before']['macro_f1']:.3f}")
print(f"after  {report['methods']['core']['macro_f1']:.3f}; see {chosen.out}/report.md")
