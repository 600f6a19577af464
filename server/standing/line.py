"""The fleet's line: over which bases it came to where it is, and on which its rounds train.

A policy names a base of the line, usually its first, and rounds train on the base of the fleet's
release. So neither a rebase nor a way back over one needs another policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.registry import Registry
from server.registry.records import ReleaseRow
from server.standing.policy import FleetPolicy

__all__ = ["line_of", "told_of", "trained_base"]

# By what a release's provenance tells of which base it came; see ``fleet.continual.growth``.
_FROM = {"grown": "grown-from", "rebased": "rebased-from"}


def line_of(registry: Registry, current: ReleaseRow) -> tuple[str, ...]:
    """Return the digests of the bases that a fleet's release came over, and the fleet was on ever.

    A base of which there is only a release that the fleet was never moved to is not among them.

    Args:
        registry: Where releases are kept.
        current: The fleet's release.
    """
    lineage = registry.releases.lineage(current.number)
    been = [row for row in registry.releases.all() if row.promoted is not None]
    return tuple(dict.fromkeys(row.base for row in (*lineage[::-1], *been)))


def trained_base(registry: Registry, policy: FleetPolicy) -> str:
    """Return the digest of the base that rounds by a policy train on.

    It is that of the fleet's release; of a policy for a base outside the line, by which no round is
    opened, and of a fleet without a release, the policy's own.
    """
    current = registry.releases.current()
    if current is None or policy.base not in line_of(registry, current):
        return policy.base
    return current.base


def told_of(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a release's provenance says of its rebase as JSON; None where it is of none.

    >>> told_of({"rebased-from": "ab", "new-labels": [], "difference": 0.0})
    {'kind': 'rebased', 'from_base': 'ab', 'new_labels': [], 'difference': 0.0}
    """
    for kind, name in _FROM.items():
        if name in provenance:
            return {
                "kind": kind,
                "from_base": provenance[name],
                "new_labels": list(provenance.get("new-labels", ())),
                "difference": provenance.get("difference"),
            }
    return None
