"""Replay: a round's release again from its stored updates, to the same digest.

Each update goes through admission and the exact mean as on the day it came; another mean or fewer
devices give another digest, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.state import Layout
from fleet.errors import InputError, RoundError, StorageError
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.aggregate import PartialSum
from fleet.federate.releases import Release, next_release
from server.registry.records import RoundRow, UpdateRow
from server.registry.releases import Releases
from server.registry.rounds import Rounds

__all__ = ["Mean", "Replayed", "exact_mean", "readmitted", "replay"]

Mean = Callable[[Sequence[Admitted], int], NDArray[np.int64]]
"""Of admitted updates and their size: the aggregate in steps of 2⁻³², int64 ``(size,)``."""
# It was admitted once, within bounds that were the coordinator's.
_ANY = Bounds(largest_examples=2**63 - 1, largest_norm=None)


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a replay came to.

    Args:
        release: The recomputed release.
        recorded: Digest of the release that the round made.
        devices: Whose updates it is made of, sorted.
    """

    release: Release
    recorded: str
    devices: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether it is the release that the round made, bit for bit."""
        return self.release.digest == self.recorded


def exact_mean(updates: Sequence[Admitted], size: int) -> NDArray[np.int64]:
    """Return the weighted mean in fixed point, the coordinator's rule."""
    return PartialSum.of(((each.steps, each.weight) for each in updates), size).mean()


def replay(
    rounds: Rounds,
    releases: Releases,
    number: int,
    *,
    without: Iterable[str] = (),
    mean: Mean = exact_mean,
) -> Replayed:
    """Recompute a round's release from its stored updates; nothing is written.

    Args:
        rounds: The registry's rounds.
        releases: Its releases.
        number: The round.
        without: Devices to leave out.
        mean: Another rule.

    Raises:
        InputError: ``no-such-round``, or ``no-such-update`` for a device that sent none.
        RoundError: ``no-release`` for a round that made none.
        StorageError: ``update-damaged`` for one that is not what was admitted.
        MismatchError: ``empty-sum`` without any device.
    """
    row = rounds.get(number)
    if row.release is None:
        raise RoundError(
            "no-release",
            f"round {number} is {row.state.value}; only a released one can be replayed",
            f"See it: fleet round show {number}",
        )
    updates = rounds.updates(number, row.attempt)
    left_out = set(without)
    if unknown := sorted(left_out - {update.device for update in updates}):
        raise InputError(
            "no-such-update",
            f"round {number} has no update of {', '.join(unknown[:5])} to leave out",
            f"See whose it has: fleet round show {number}",
        )
    start, recorded = releases.load(row.plan.release), releases.load(row.release)
    chosen = [each for each in updates if each.device not in left_out]
    admitted = [readmitted(each, row, start.state.layout) for each in chosen]
    release = next_release(
        start,
        mean(admitted, start.state.layout.size),
        recorded.provenance,
        number=recorded.number,
    )
    return Replayed(release, recorded.digest, tuple(each.device for each in chosen))


def readmitted(update: UpdateRow, row: RoundRow, layout: Layout) -> Admitted:
    """Return a stored update as admission made it, for a replay or a coordinator that resumes.

    Raises:
        StorageError: ``update-damaged`` when it is not what was admitted.
    """
    verdict = admit(update.payload, row.plan, layout, update.device, _ANY)
    if isinstance(verdict, Admitted):
        if (verdict.digest, verdict.weight) == (update.digest, update.weight):
            return verdict
        detail = f"its digest is {verdict.digest[:12]}…, admitted was {update.digest[:12]}…"
    else:
        detail = f"{verdict.reason.value}: {verdict.detail}"
    raise StorageError(
        "update-damaged",
        f"the update of {update.device} in round {row.round} is not what was admitted: {detail}",
        "Restore the last backup beside this registry and compare: fleet server restore.",
    )
