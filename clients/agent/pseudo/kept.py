"""What a training took as pseudo-labels, in the store.

A value of ``store.state``, plain JSON with a version: it names people's windows, so it is under
:data:`~clients.agent.store.forget.LEARNED` and goes when anybody is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clients.agent.store import Store
from clients.agent.store.forget import LEARNED
from fleet.errors import StorageError

__all__ = ["KEPT", "Kept", "kept_of", "put_kept"]

VERSION = 2
"""Of the value; one of another version is as good as none."""
NUMBERS = ("used", "looked-at", "right", "confident")
KEPT = LEARNED + "pseudo-labels"
"""Key of what the last training took."""


@dataclass(frozen=True)
class Kept:
    """What one training took.

    Args:
        plan: Id of its plan.
        labelled: Digest of the labelled windows that it trained on.
        statistics: Digest of the device's own statistics that it ran under; empty for the fleet's.
        ids: Of the windows, ascending.
        labels: Their classes.
        judges: Whose held-out windows the network was tried on first, ascending.
        said: What the journal has of it, see :meth:`clients.agent.pseudo.labelling.Chosen.said`.
    """

    plan: str
    labelled: str
    statistics: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    judges: tuple[str, ...]
    said: Mapping[str, Any]


def kept_of(store: Store) -> Kept | None:
    """Return what the last training took; None where nothing is kept.

    Raises:
        StorageError: ``pseudo-labels-damaged``.
    """
    try:
        found = store.state.get(KEPT)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            return None
        kept = Kept(
            plan=str(found["plan"]),
            labelled=str(found["labelled"]),
            statistics=str(found["statistics"]),
            ids=tuple(map(int, found["ids"])),
            labels=tuple(map(int, found["labels"])),
            judges=tuple(map(str, found["judges"])),
            said=_said(found["said"]),
        )
        if len(kept.ids) != len(kept.labels):
            raise ValueError("they are not as many as their labels")
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "pseudo-labels-damaged", f"the pseudo-labels cannot be read: {error!r}", ""
        ) from error
    return kept


def _said(found: Any) -> dict[str, Any]:
    said: dict[str, Any] = {name: int(found[name]) for name in NUMBERS}
    return said | ({"none": str(found["none"])} if "none" in found else {})


def put_kept(store: Store, kept: Kept) -> None:
    """Keep what a training took in the place of what the one before did."""
    value = {
        "version": VERSION,
        "plan": kept.plan,
        "labelled": kept.labelled,
        "statistics": kept.statistics,
        "ids": list(kept.ids),
        "labels": list(kept.labels),
        "judges": list(kept.judges),
        "said": dict(kept.said),
    }
    store.state.put(KEPT, value)
