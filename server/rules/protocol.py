"""What a rule is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fleet.federate.admission import Admitted
from fleet.federate.releases import Release
from server.rules.memory import NOTHING, Memory

__all__ = ["Closed", "Rule"]


@dataclass(frozen=True, eq=False)
class Closed:
    """What a round came to.

    Args:
        mean: What the release moves by, in steps of 2⁻³², int64 ``(size,)``; see
            :func:`fleet.federate.releases.next_release`.
        memory: What the rule remembers for the next round.
        record: What the rule did, for the round's record and the release's provenance; JSON.
    """

    mean: NDArray[np.int64]
    memory: Memory = NOTHING
    record: Mapping[str, Any] = field(default_factory=dict)


class Rule(Protocol):
    """Makes one aggregate of a round's updates; pure."""

    def close(self, release: Release, updates: Mapping[str, Admitted], memory: Memory) -> Closed:
        """Aggregate a round.

        Args:
            release: What the cohort trained from.
            updates: By device; as many as the rule's ``fewest``, in any order.
            memory: What :attr:`Closed.memory` was in the round before, or :data:`NOTHING`.

        Raises:
            RoundError: ``strategy`` when the rule fails.
            MismatchError: When the updates, or what is made of them, exceed the bounds of
                :mod:`fleet.federate.aggregate`; ``other-memory`` for another rule's memory.
        """
        ...
