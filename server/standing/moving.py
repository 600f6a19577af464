"""Moves to another base: an order to rebase becomes a release, signed and promoted; once.

What was done is found in the registry, so an order that was cut off anywhere is gone on with: its
release says which order made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleet.adapt.base import Base
from fleet.errors import InputError, MismatchError, StorageError
from fleet.federate.releases import Release
from server.rebasing import Rebase, check_same, rebase
from server.registry import Registry
from server.registry.orders import Order
from server.registry.records import ReleaseRow
from server.standing.line import told_of
from server.standing.planning import Bench
from server.standing.world import World

__all__ = ["ORDER", "Moves", "planned"]

ORDER = "order"
"""Under which name a release's provenance has the order that made it."""


@dataclass
class Moves:
    """Carries out orders to rebase, between rounds.

    Args:
        registry: Where bases and releases are.
        bench: Bases.
        world: Words and the key that signs.
    """

    registry: Registry
    bench: Bench
    world: World

    def rebase(self, order: Order) -> Mapping[str, Any]:
        """Make the release of an order, or find it, and make it the fleet's unless it is held.

        Returns:
            ``release`` and ``base``, what :func:`server.standing.line.told_of` tells of it, and
            whether it is ``promoted``; it is not where somebody moved the fleet meanwhile.

        Raises:
            FleetError: Why there is none, see :func:`planned`.
        """
        releases = self.registry.releases
        row = self._made(order)
        if row is None:
            row = self._make(order)
        current = releases.current()
        # Whoever moved the fleet since, forward or back, meant it to stay there.
        unmoved = current is not None and current.digest == row.parent and row.promoted is None
        if unmoved and row.withdrawn is None and not order.args["hold"]:
            row = releases.promote(row.number, why=_why(order), actor=order.actor)
        promoted = row.promoted is not None
        told = told_of(row.provenance) or {}
        self.world.say("release.rebased", release=row.number, base=row.base, promoted=promoted)
        return {"release": row.number, "base": row.base, **told, "promoted": promoted}

    def _made(self, order: Order) -> ReleaseRow | None:
        found = (
            row
            for row in reversed(self.registry.releases.all())
            if row.provenance.get(ORDER) == order.id and row.base == order.args["base"]
        )
        return next(found, None)

    def _make(self, order: Order) -> ReleaseRow:
        digest, releases = str(order.args["base"]), self.registry.releases
        method = str(order.args["method"])
        made = planned(self.registry, self.bench.base, digest, method, {ORDER: order.id})
        if not order.args["another_network"]:
            check_same(made)
        signature = self.world.sign(made.release) if self.world.sign else None
        return releases.add(made.release, signature=signature, why=_why(order), actor=order.actor)


def planned(
    registry: Registry,
    base_of: Callable[[str], Base],
    digest: str,
    method: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Rebase:
    """Return the release by which the fleet would move to a base; nothing is written.

    Args:
        registry: Where releases are kept.
        base_of: Reads an installed base.
        digest: Of the base.
        method: What is trained on it; empty for what is trained now.
        provenance: Added to the release's own.

    Raises:
        InputError: ``no-release`` for a fleet that serves none yet; ``no-such-base``.
        MismatchError: ``already-there``, and the others of :func:`server.rebasing.rebase`;
            ``base-unreadable`` where a base is damaged.
        StorageError: ``release-damaged``.
    """
    current = registry.releases.current()
    if current is None:
        raise InputError(
            "no-release",
            "the fleet is on no release yet, so there is nothing to go on from",
            f"Let its rounds begin with this base: fleet policy set base={digest} --yes",
        )
    old, new = _read(base_of, current.base), _read(base_of, digest)
    made = rebase(
        old,
        registry.releases.load(current.number),
        new,
        number=registry.releases.next_number(),
        method=method,
        provenance=provenance or {},
    )
    _check_new(registry, made.release)
    return made


def _read(base_of: Callable[[str], Base], digest: str) -> Base:
    try:
        return base_of(digest)
    except StorageError as error:
        # A damaged base must not end the service, which would meet the same order again.
        if error.code.startswith(("bundle-", "base-")):
            raise MismatchError("base-unreadable", error.message, error.hint) from error
        raise


def _check_new(registry: Registry, release: Release) -> None:
    """Refuse to make a second release of a base from one parent: it would serve the same."""
    for row in registry.releases.all():
        twin = (row.parent, row.base, row.state_digest) == (
            release.parent,
            release.base,
            release.state.digest,
        )
        if twin and row.withdrawn is None:
            raise MismatchError(
                "already-there",
                f"release {row.number} is the fleet's release on base {row.base[:12]}… already",
                f"Move the fleet to it: fleet release promote {row.number}",
            )


def _why(order: Order) -> str:
    own = f"rebase, order {order.id}"
    return f"{own}: {order.args['why']}" if order.args["why"] else own
