"""The verb by which the fleet moves to another base: an order, looked at before it is placed."""

from __future__ import annotations

from typing import Any

from fleet.errors import InputError
from server.control import requests as r
from server.control.seam import Answer
from server.control.verbs.fleet import Fleet
from server.control.verbs.life import life
from server.control.verbs.ordered import shown_order
from server.control.verbs.touched import rounds_of, touched
from server.installed import base_in
from server.registry.orders import Verb

__all__ = ["rebase"]


def rebase(fleet: Fleet, actor: str, asked: r.ReleaseRebase) -> Answer:
    """Order that the fleet moves to a base; what the service would refuse is refused at once.

    Raises:
        InputError: ``no-such-base``, ``no-release``.
        MismatchError: See :func:`server.standing.moving.planned`; ``another-network`` unless it is
            asked for.
        RoundError: ``queue-full``.
    """
    # They bring PyTorch along, which no other verb needs.
    from server.rebasing import check_same
    from server.standing.moving import planned

    digest = _installed(fleet, asked.base)
    bases = fleet.registry.bases
    made = planned(fleet.registry, lambda each: base_in(bases.content(each)), digest, asked.method)
    if not asked.another_network:
        check_same(made)
    current = fleet.registry.releases.current()
    assert current is not None
    following = [
        each.name
        for each in fleet.registry.devices.all()
        if each.pinned is None and each.revoked is None
    ]
    left = [] if asked.hold else [current.number]
    reach = touched([] if asked.hold else following, [*left, made.release.number])
    data: dict[str, Any] = {
        "dry_run": asked.dry_run,
        "touches": reach,
        "base": digest,
        "from_release": current.number,
        "from_base": current.base,
        "kind": made.kind,
        "new_labels": list(made.labels),
        "learns_classes": made.learns_classes,
        "difference": made.difference,
        "method": made.release.method,
        "from_method": current.method,
        "hold": asked.hold,
        "open_rounds": rounds_of(fleet),
    }
    if not asked.dry_run:
        given: dict[str, Any] = {"method": asked.method, "hold": asked.hold}
        given |= {"another_network": asked.another_network, "why": asked.why}
        order = fleet.registry.orders.place(
            Verb.rebase, {"base": digest, **given}, actor=actor, key=asked.key
        )
        data |= {"order": shown_order(order), **life(fleet).record()}
    return Answer(data)


def _installed(fleet: Fleet, digest: str) -> str:
    """Return the digest of an installed base, written whole."""
    known = [row.digest for row in fleet.registry.bases.all()]
    if digest in known:
        return digest
    meant = [each for each in known if each.startswith(digest)]
    hint = "Install it: fleet base install FILE; what is installed: fleet base list"
    if len(meant) == 1:
        hint = f"Write it whole: {meant[0]}"
    raise InputError("no-such-base", f"no base {digest} is installed on this server", hint)
