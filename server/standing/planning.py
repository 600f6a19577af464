"""Between the registry and the coordinator: what a round starts from, and how one is taken up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.adapt.state import Layout
from fleet.errors import MismatchError
from fleet.federate.records import Plan
from fleet.federate.releases import Release, first_release
from fleet.federate.rule import read_rule
from fleet.peft.registry import find
from server import coordinator as c
from server.installed import base_in
from server.registry import Registry
from server.registry.bases import no_base
from server.registry.records import OpenRound
from server.registry.replay import readmitted, recorded_rule
from server.rules import NOTHING, Memory
from server.standing.line import line_of
from server.standing.policy import FleetPolicy

__all__ = ["Bench", "begun", "resumed", "rule_record", "starting"]

# The coordinator of a standing fleet ends no run; the service does.
ENDLESS = 2**31
ACTOR = "service"


@dataclass
class Bench:
    """Bases, read once.

    Args:
        registry: Where they are installed.
    """

    registry: Registry
    _bases: dict[str, Base] = field(default_factory=dict)

    def base(self, digest: str) -> Base:
        """Return a base, checked against its digest.

        Raises:
            InputError: ``no-such-base``.
            StorageError: See :func:`fleet.adapt.base.load_base`.
            MismatchError: ``other-base`` when another one is installed under the digest.
        """
        if digest not in self._bases:
            self._bases = {digest: self._read(digest)}
        return self._bases[digest]

    def layout(self, method: str, digest: str) -> Layout:
        """Return the layout of what a method trains on a base.

        Raises:
            InputError: ``unknown-method`` or ``no-such-base``.
            StorageError: See :func:`fleet.adapt.base.load_base`.
        """
        base = self.base(digest)
        return find(method).layout(folded_network(base), base.frames)

    def rank(self, digest: str) -> int:
        """Return the rank of a base's frames.

        Raises:
            InputError: ``no-such-base``.
            StorageError: See :func:`fleet.adapt.base.load_base`.
        """
        return self.base(digest).record.rank

    def _read(self, digest: str) -> Base:
        base = base_in(self.registry.bases.content(digest))
        if base.digest != digest:
            raise MismatchError(
                "other-base", f"under {digest[:12]}… the base {base.digest[:12]}… is installed"
            )
        return base


def starting(
    registry: Registry,
    bench: Bench,
    policy: FleetPolicy,
    sign: Callable[[Release], bytes] | None = None,
) -> Release:
    """Return the release that the next round starts from: the fleet's, at first the base itself.

    The policy names any base of the fleet's line (:func:`server.standing.line.line_of`); the round
    trains on the release's base and by that base's rank.

    Args:
        registry: Where releases are kept.
        bench: Bases.
        policy: What is trained.
        sign: Signs the base itself when it becomes release 0; None leaves it unsigned.

    Raises:
        MismatchError: ``other-base`` or ``other-method`` when the policy is for another fleet,
            ``other-rank`` when the base that it names has frames of another rank.
        InputError: ``no-such-base`` or ``unknown-method``.
    """
    current = registry.releases.current()
    if current is None and registry.releases.next_number() == 0:
        _check_rank(bench, policy)
        layout = bench.layout(policy.method, policy.base)
        first = first_release(bench.base(policy.base), policy.method, layout)
        signature = sign(first) if sign else None
        registry.releases.add(first, signature=signature, why="the base itself", actor=ACTOR)
    if current is None:
        current = registry.releases.promote(0, why="the fleet's first", actor=ACTOR)
    release = registry.releases.load(current.number)
    if policy.base == release.base:
        _check_rank(bench, policy)
    elif policy.base not in (line := line_of(registry, current)):
        if policy.base not in {row.digest for row in registry.bases.all()}:
            raise no_base(policy.base)
        raise MismatchError(
            "other-base",
            f"the policy has base {policy.base[:12]}, the fleet's release {release.number} came "
            f"over {', '.join(base[:12] for base in line)}",
            f"Move the fleet to it: fleet release rebase {policy.base}; or set a policy for the "
            f"release: fleet policy set base={release.base} --yes",
        )
    layout = bench.layout(policy.method, release.base)
    for what, own, wanted in (
        ("method", policy.method, release.method),
        ("layout", layout.digest, release.state.layout.digest),
    ):
        if own != wanted:
            raise MismatchError(
                "other-method",
                f"the policy has {what} {own[:12]}, the fleet's release {release.number} has "
                f"{wanted[:12]}",
                "Set a policy for the release, or promote another release.",
            )
    return release


def _check_rank(bench: Bench, policy: FleetPolicy) -> None:
    rank = bench.rank(policy.base)
    if rank != policy.rank:
        raise MismatchError(
            "other-rank",
            f"the policy trains rank {policy.rank}, its base has rank {rank}",
            "Set a policy with the rank of the base: fleet policy set",
        )


def begun(
    policy: FleetPolicy,
    start: Release,
    number: int,
    release_number: int,
    memory: Memory = NOTHING,
    *,
    rank: int,
) -> c.State:
    """Return the coordinator's state before a round.

    Args:
        policy: What holds.
        start: What its devices train from.
        number: The round.
        release_number: Of the release that it makes.
        memory: What the policy's rule remembered when it made ``start``.
        rank: Of the frames of ``start``'s base.
    """
    rules = c.Rules(
        rounds=ENDLESS,
        quorum=policy.quorum,
        deadline_s=policy.deadline_s,
        wait_s=float("inf"),
        seed=policy.seed,
        rule=read_rule(policy.rule),
        enough=policy.quorum if policy.over_select else 0,
    )
    task = c.Task(
        method=policy.method,
        rank=rank,
        layout=start.state.layout,
        optimiser=policy.optimiser,
        learning_rate=policy.learning_rate,
        momentum=policy.momentum,
        epochs=policy.epochs,
        batch=policy.batch,
        weight_cap=policy.weight_cap,
        seed=policy.seed,
        max_steps=policy.max_steps,
        memory_budget=policy.memory_budget,
        compression=policy.compression,
        anchor=policy.anchor,
        ewc=policy.ewc,
        distil=policy.distil,
    )
    state = c.begin(rules, task, start, round_number=number, memory=memory)
    return replace(state, number=release_number)


def rule_record(policy: FleetPolicy, version: int, needed: int) -> dict[str, Any]:
    """Return what a round's record says of how it is closed; a resumed round goes by it."""
    return {
        **read_rule(policy.rule).record,
        "spelt": policy.rule,
        "quorum": needed,
        "enough": policy.quorum if policy.over_select else 0,
        "policy": version,
    }


def resumed(
    found: OpenRound, start: Release, release_number: int, memory: Memory = NOTHING
) -> c.State:
    """Return the coordinator's state of a round that was cut off, with what was accepted.

    Args:
        found: The round.
        start: What its devices train from.
        release_number: Of the release that it makes.
        memory: What the round's rule remembered when it made ``start``.

    Raises:
        StorageError: ``update-damaged``.
    """
    row, plan, layout = found.row, found.row.plan, start.state.layout
    rule: Mapping[str, Any] = row.rule
    rules = c.Rules(
        rounds=ENDLESS,
        quorum=int(rule.get("quorum", 0)),
        deadline_s=plan.deadline_s,
        wait_s=float("inf"),
        seed=plan.seed,
        rule=recorded_rule(row),
        enough=int(rule.get("enough", 0)),
    )
    refused = [each for each in found.refusals if not each.earlier]
    late = [each for each in found.refusals if each.earlier]
    return c.State(
        rules,
        _task_of(plan, layout),
        start,
        round=row.round,
        phase=c.Phase.collecting,
        plan=plan,
        selected=row.selected,
        unanswered=frozenset(found.unanswered),
        accepted={each.device: readmitted(each, row, layout) for each in found.updates},
        refused=tuple(c.Refusal(each.device, each.reason, each.detail) for each in refused),
        late=tuple(c.Refusal(each.device, each.reason, each.detail) for each in late),
        opened_at=row.opened.at_s,
        number=release_number,
        memory=memory,
    )


def _task_of(plan: Plan, layout: Layout) -> c.Task:
    return c.Task(
        method=plan.method,
        rank=plan.rank,
        layout=layout,
        optimiser=plan.optimiser,
        learning_rate=plan.learning_rate,
        momentum=plan.momentum,
        epochs=plan.epochs,
        batch=plan.batch,
        weight_cap=plan.weight_cap,
        seed=plan.seed,
        max_steps=plan.max_steps,
        memory_budget=plan.memory_budget,
        compression=plan.compression,
        anchor=plan.anchor,
        ewc=plan.ewc,
        distil=plan.distil,
    )
