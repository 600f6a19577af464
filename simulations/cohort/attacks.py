"""Attacks: virtual devices whose updates are forged before anyone sees them.

What a forger changes is the array alone. Its header stays whole, so admission sees nothing wrong as
long as the entries are plausible; whether the fleet survives is up to the rule that aggregates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fleet.errors import InputError
from fleet.federate.wire import Payload
from simulations.cohort.fleet import CohortFleet

__all__ = ["AttackedFleet", "Forge", "sign_flip"]

Forge = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From the delta that a device trained, float32 ``(size,)``, to the one that it sends."""


class AttackedFleet:
    """A fleet some of whose devices lie; a :class:`~simulations.cohort.fleet.CohortFleet`.

    They train as asked and send what ``forge`` makes of it. Evaluations are answered honestly.

    Args:
        fleet: Its devices.
        attackers: Partition ids of those that lie.
        forge: What they send in place of what they learned.
    """

    def __init__(self, fleet: CohortFleet, attackers: Collection[int], forge: Forge) -> None:
        self._fleet = fleet
        self._attackers = frozenset(attackers)
        self._forge = forge

    def status(self, partition: int) -> Payload:
        """Return a device's status as a config without an array."""
        return self._fleet.status(partition)

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        answers = self._fleet.train(message, partitions)
        return [
            replace(answer, array=self._forge(answer.array))
            if partition in self._attackers and isinstance(answer, Payload)
            else answer
            for partition, answer in zip(partitions, answers, strict=True)
        ]

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        return self._fleet.evaluate(message, partitions)

    def close(self) -> None:
        """End the fleet; nothing is asked afterwards."""
        self._fleet.close()


def sign_flip(factor: float) -> Forge:
    """Return the attack that sends ``-factor`` times what was learned.

    Args:
        factor: Positive; 1 only turns the update round, more also outweighs honest devices.

    Raises:
        InputError: ``attack`` for a factor that is not positive.

    >>> sign_flip(3)(np.array([0.5, -1.0], np.float32)).tolist()
    [-1.5, 3.0]
    """
    if not factor > 0:
        raise InputError("attack", f"a sign flip has a positive factor, not {factor:g}")

    def forged(delta: NDArray[np.float32]) -> NDArray[np.float32]:
        return (delta * np.float32(-factor)).astype(np.float32)

    return forged
