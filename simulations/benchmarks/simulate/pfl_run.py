"""The side ``pfl``: full fine-tuning by pfl-research's own federated averaging.

    PFL_PYTHON -m torch.distributed.run --standalone --nproc-per-node=2 \
        -m simulations.benchmarks.simulate.pfl_run WORK.json OUT

Runs with an interpreter that has ``pfl`` and Corefleet without extras. Each process has one thread
and one network, trains half of a cohort, and they add their sums by ``torch.distributed`` (gloo),
pfl's own way to use many cores; Horovod is not needed. The network, the windows, the cohorts, the
steps and the evaluation schedule are those of ``loop-full``; the order of a device's windows comes
from another generator.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional

from fleet.adapt.base import load_base
from simulations.benchmarks.simulate.outcome import Watch
from simulations.benchmarks.simulate.trainee import MOMENTUM, counts_of, trainee_of
from simulations.benchmarks.simulate.windows import Windows, read_windows
from simulations.benchmarks.simulate.work import Work, is_evaluated, read_work

__all__ = ["main"]


class Network(nn.Module):
    """The network in the form that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of a batch, in nats."""
        return functional.cross_entropy(self.network(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        """Return next to nothing: pfl judges every user of its first round, the others do not."""
        return {"windows": Weighted(0, len(y))}


class Judge:
    """A callback that times rounds and judges the model on schedule, each process its share."""

    def __init__(self, work: Work, windows: Windows, watch: Watch) -> None:
        self.work, self.windows, self.watch = work, windows, watch

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Judge the base."""
        self._judge(0, model)
        return Metrics()

    def after_central_iteration(
        self, metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note a round's end, and judge it if it is its turn."""
        self.watch.trained()
        if is_evaluated(self.work.config, central_iteration + 1):
            self._judge(central_iteration + 1, model)
        return False, Metrics()

    def on_train_end(self, *, model: Any) -> None:
        """Nothing is left to do."""

    def _judge(self, number: int, model: Any) -> None:
        together = pytorch_ops.distributed
        rows = together.distribute_range(len(self.windows.test_y))
        part = slice(rows.start, rows.stop)
        x, y = self.windows.test_x[part], self.windows.test_y[part]
        network = model.pytorch_model.network
        counts = counts_of(network, x, y, self.work.sizes["classes"])
        (total,) = together.all_reduce([torch.from_numpy(counts.astype(np.float32))])
        self.watch.judged(number, total.numpy().astype(np.int64))


def main(work_path: Path, out: Path) -> None:
    """Run the side in this process, one of those that ``torchrun`` started."""
    watch = Watch()
    torch.set_num_threads(1)
    work = read_work(work_path)
    config, windows = work.config, read_windows(work.windows)
    network = trainee_of(load_base(Path(config.base)), "full").module
    model = PyTorchModel(
        Network(network),
        functools.partial(torch.optim.SGD, momentum=MOMENTUM),
        # The server replaces its model by the average.
        torch.optim.SGD(network.parameters(), lr=1.0),
    )
    data = FederatedDataset(_maker(windows, config.seed), _sampler(work))
    backend = SimulatedBackend(data, data, [WeightByDatapoints()])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=config.rounds,
            evaluation_frequency=config.rounds + 1,
            train_cohort_size=config.cohort,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_num_epochs=config.epochs,
            local_learning_rate=work.full_rate,
            local_batch_size=config.batch,
        ),
        callbacks=[Judge(work, windows, watch)],
        send_metrics_to_platform=False,
    )
    if pytorch_ops.distributed.global_rank == 0:
        watch.write(out)


def _sampler(work: Work) -> Any:
    """Return what names the next device: those of the workload's cohorts, one after the other."""
    devices: Iterator[int] = itertools.chain.from_iterable(work.cohorts)
    return lambda: next(devices)


def _maker(windows: Windows, seed: int) -> Any:
    """Return what makes a device's data set; pfl takes windows in order, so they are shuffled."""
    rng: np.random.Generator = np.random.default_rng(seed)

    def make(device: int) -> Any:
        x, y = windows.train(device)
        order: NDArray[np.int64] = rng.permutation(len(y))
        tensors = (torch.from_numpy(x[order]), torch.from_numpy(y[order]))
        return PyTorchTensorDataset(tensors, user_id=str(device))

    return make


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
