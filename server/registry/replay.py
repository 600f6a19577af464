"""Replay: a round's release again from its stored updates, to the same digest.

Each update goes through admission and the round's rule as on the day it came, with what the rule
remembered of the rounds before; another rule or fewer devices give another digest, and nothing is
written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fleet.adapt.state import Layout
from fleet.errors import InputError, RoundError, StorageError
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.releases import Release, next_release
from fleet.federate.rule import MEAN, RuleSpec, read_rule
from server.registry.records import RoundRow, UpdateRow
from server.registry.releases import Releases
from server.registry.rounds import Rounds
from server.rules import rule_of

__all__ = ["Replayed", "readmitted", "recorded_rule", "replay"]

# It was admitted once, within bounds that were the coordinator's.
_ANY = Bounds(largest_examples=2**63 - 1, largest_norm=None)


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a replay came to.

    Args:
        release: The recomputed release.
        recorded: Digest of the release that the round made.
        devices: Whose updates it is made of, sorted.
        rule: Spelling of the rule that made it.
    """

    release: Release
    recorded: str
    devices: tuple[str, ...]
    rule: str = MEAN.text

    @property
    def same(self) -> bool:
        """Whether it is the release that the round made, bit for bit."""
        return self.release.digest == self.recorded


def recorded_rule(row: RoundRow) -> RuleSpec:
    """Return the rule that a round's record names."""
    return read_rule(str(row.rule.get("spelt", MEAN.text)))


def replay(
    rounds: Rounds,
    releases: Releases,
    number: int,
    *,
    without: Iterable[str] = (),
    rule: str | None = None,
) -> Replayed:
    """Recompute a round's release from its stored updates; nothing is written.

    Args:
        rounds: The registry's rounds.
        releases: Its releases.
        number: The round.
        without: Devices to leave out.
        rule: Spelling of another rule, see :func:`fleet.federate.rule.read_rule`; one that
            remembers starts afresh unless it is the one that made the start's release. None for
            the rule in the round's record.

    Raises:
        InputError: ``no-such-round``, ``rule``, or ``no-such-update`` for a device that sent none.
        RoundError: ``no-release`` for a round that made none, ``too-few-updates`` for the rule, or
            ``strategy`` when it fails.
        StorageError: ``update-damaged`` or ``memory-damaged`` for what is not as it was kept.
        MismatchError: For what the rule makes of the updates, see :class:`server.rules.Rule`.
    """
    row = rounds.get(number)
    if row.release is None:
        raise RoundError(
            "no-release",
            f"round {number} is {row.state.value}; only a released one can be replayed",
            f"See it: fleet round show {number}",
        )
    spec = recorded_rule(row) if rule is None else read_rule(rule)
    chosen = _chosen(rounds.updates(number, row.attempt), set(without), row, spec)
    start, recorded = releases.load(row.plan.release), releases.load(row.release)
    admitted = {each.device: readmitted(each, row, start.state.layout) for each in chosen}
    closed = rule_of(spec).close(start, admitted, releases.memory(start.number, spec))
    provenance = {
        **recorded.provenance,
        "rule": {**spec.record, **closed.record},
        "devices": {device: each.weight for device, each in admitted.items()},
    }
    release = next_release(start, closed.mean, provenance, number=recorded.number)
    return Replayed(release, recorded.digest, tuple(admitted), spec.text)


def _chosen(
    updates: Iterable[UpdateRow], left_out: set[str], row: RoundRow, spec: RuleSpec
) -> list[UpdateRow]:
    """Return the updates that a replay is made of."""
    by_device = {update.device: update for update in updates}
    if unknown := sorted(left_out - by_device.keys()):
        raise InputError(
            "no-such-update",
            f"round {row.round} has no update of {', '.join(unknown[:5])} to leave out",
            f"See whose it has: fleet round show {row.round}",
        )
    chosen = [update for device, update in by_device.items() if device not in left_out]
    if len(chosen) < spec.fewest:
        raise RoundError(
            "too-few-updates",
            f"the rule {spec.text} needs {spec.fewest} update(s), this replay of round {row.round} "
            f"has {len(chosen)}",
            "Leave fewer devices out, or choose a rule that needs fewer: docs/aggregation.md.",
        )
    return chosen


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
