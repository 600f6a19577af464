"""What compression has lost of the updates of a run's virtual devices, kept by the run.

A real device keeps its own in its store. A simulation begins with those of its last whole round and
saves them with each release, so that a run that is resumed ends in the same digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from clients.agent.learner import Learner, Residual
from fleet.errors import RoundError, StorageError
from fleet.federate.records import Plan
from fleet.federate.wire import Payload
from fleet.files import write_bytes

__all__ = ["Residuals"]


class Residuals:
    """By device, in one process; threads may ask for different devices at once."""

    def __init__(self) -> None:
        self._held: dict[int, Residual] | None = None

    def begin(self, held: Mapping[int, Residual]) -> None:
        """Start from what was held by partition id; nothing is kept before."""
        self._held = dict(held)

    def of(self, plan: Plan, partition: int) -> Residual | None:
        """Return what a device lost before; None for nothing, or for a plan without compression.

        Raises:
            RoundError: ``no-residuals`` where nobody keeps them.
        """
        if plan.compression == "none":
            return None
        if self._held is None:
            raise RoundError(
                "no-residuals",
                f"a plan asks for {plan.compression}, and nothing here keeps what that loses",
                "Simulate it with fleet simulate, --engine cohort or loop; real agents can do it.",
            )
        return self._held.get(partition)

    def put(self, partition: int, lost: Residual | None) -> None:
        """Keep what a device lost now; None changes nothing."""
        if lost is not None and self._held is not None:
            self._held[partition] = lost

    def answer(self, learner: Learner, partition: int, message: Payload) -> Payload:
        """Let a device answer a plan, and keep what that loses; errors are the learner's."""
        answer, lost = learner.answer_with(message, lambda plan: self.of(plan, partition))
        self.put(partition, lost)
        return answer

    def write(self, path: Path) -> None:
        """Keep everything in a file, whole or not at all.

        Raises:
            StorageError: See :func:`fleet.files.write_bytes`.
        """
        held = self._held or {}
        write_bytes(path, save({str(each): held[each] for each in sorted(held)}))

    def read(self, path: Path) -> None:
        """Begin with what a file keeps.

        Raises:
            StorageError: ``residuals-damaged``.
        """
        try:
            found = load(path.read_bytes())
            self.begin({int(name): array for name, array in found.items()})
        except (OSError, SafetensorError, ValueError) as error:
            raise StorageError(
                "residuals-damaged", f"{path} cannot be read: {error}", "Start a new run."
            ) from error
