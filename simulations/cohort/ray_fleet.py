"""The fleet past one machine: chunks of devices trained by the workers of a Ray cluster.

Chunks are those of :class:`~simulations.cohort.batched.BatchedFleet`, and every worker computes
them with the same code on one thread; whoever takes which chunk changes no bit of any update.
Each device's update comes back on its own, because the server counts its bytes and admits or
refuses it; it then adds them in fixed-point numbers, whose sum is exact in any order. So a sharding
can change nothing, on one node or on many. Sums on the nodes would save traffic in the cluster,
about the size of a core per device, and lose those records.

Nothing that comes from a device's wire is unpickled by us. Between the processes of a cluster Ray
carries plain values (``packed``) in its own serialisation, which is pickle: a cluster is one
trusted installation, and its ports belong behind a firewall.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.cohort.train import CHUNK_DEVICES
from fleet.errors import InputError
from fleet.federate.wire import Payload
from simulations.cohort.batched import JUDGED_TOGETHER, LARGEST_WORKERS
from simulations.cohort.chunks import chunks_of, in_order
from simulations.cohort.fleet import LearnerFleet, RunConfigValues
from simulations.cohort.packed import Answer
from simulations.cohort.ray_cluster import RayCluster
from simulations.cohort.ray_team import Team
from simulations.cohort.ray_worker import setting_of
from simulations.machine import cores

__all__ = ["RayFleet"]


class RayFleet(LearnerFleet):
    """The devices of a run, trained on a Ray cluster; :meth:`close` it.

    Its updates are those of :class:`~simulations.cohort.batched.BatchedFleet`, bit for bit where
    the nodes' processors take the same code paths of PyTorch.

    Args:
        run_config: See :class:`~simulations.cohort.fleet.LearnerFleet`.
        address: See :class:`~simulations.cohort.ray_cluster.RayCluster`.
        workers: Most actors; None for one per CPU of the cluster. A cluster that is started here
            has as many CPUs, by default this machine's.

    Raises:
        InputError: ``workers`` when there would be none, or what the cluster refuses.
        UnavailableError: When there is no cluster.
    """

    def __init__(
        self, run_config: RunConfigValues, address: str = "", workers: int | None = None
    ) -> None:
        super().__init__(run_config)
        if workers is not None and workers < 1:
            raise InputError("workers", f"1 worker or more may train, not {workers}")
        setting, base = setting_of(run_config)
        with ExitStack() as opened:
            cluster = RayCluster(address, workers or min(cores(), LARGEST_WORKERS))
            opened.callback(cluster.close)
            most = workers
            self._team = Team(
                setting, base, lambda: min(cluster.cpus(), most) if most else cluster.cpus()
            )
            opened.callback(self._team.close)
            self._ends = opened.pop_all()

    def close(self) -> None:
        """End the actors and leave the cluster; nothing can be asked any more."""
        self._ends.close()

    def nodes(self) -> set[str]:
        """Return Ray's ids of the nodes that take part now."""
        return self._team.nodes()

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan, see :class:`~simulations.cohort.fleet.CohortFleet`.

        Raises:
            FleetError: See :meth:`~simulations.cohort.ray_team.Team.answer`.
        """
        chunks = chunks_of(partitions, self.train_windows, CHUNK_DEVICES)
        answers = self._team.answer("train", message, chunks)
        return in_order(partitions, chunks, [[_update(each) for each in one] for one in answers])

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release, see :class:`~simulations.cohort.fleet.CohortFleet`.

        Raises:
            FleetError: See :meth:`~simulations.cohort.ray_team.Team.answer`.
        """
        chunks = chunks_of(partitions, lambda _: 0, JUDGED_TOGETHER)
        answers = self._team.answer("evaluate", message, chunks)
        return in_order(partitions, chunks, [[_counts(each) for each in one] for one in answers])


def _update(answer: Answer) -> Payload | Exception:
    assert not isinstance(answer, np.ndarray)
    return answer


def _counts(answer: Answer) -> NDArray[np.int64] | Exception:
    assert not isinstance(answer, Payload)
    return answer
