"""Rebasing: the release of another base that goes on where a release of the old base is.

    the same base with more classes   ``grown``    the release's state is carried over
    any other base that takes it on   ``rebased``  no core: the base's own kernels are served

A rebased base serves what the release served where its kernels are the merged ones up to one
rounding. Any other one is *another network*, which may well be meant, and has to be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.adapt.state import Layout
from fleet.continual.apart import relative_difference
from fleet.continual.growth import ROUNDING, carried_release, rebased_release
from fleet.errors import MismatchError
from fleet.federate.releases import Release
from fleet.federate.served import merge_release
from fleet.models.registry import HEAD
from fleet.peft.registry import find

__all__ = ["GROWN", "REBASED", "Rebase", "check_same", "rebase"]

GROWN, REBASED = "grown", "rebased"
SHOWN = 12
MOST_CLASSES = 256
"""Of a base that devices take; an evaluation's counts have no more."""
NEXT = "Make the base from this release: fleet base rebase --help, fleet base grow --help"


@dataclass(frozen=True, eq=False)
class Rebase:
    """A release of another base, and what it is to the one before.

    Args:
        release: The release; its provenance says all of this.
        kind: ``grown`` or ``rebased``.
        labels: Classes that its base has more, in order.
        difference: Largest difference of a served parameter from what the release before serves
            (and of the normalisation), relative to the largest entry of that parameter; None where
            the two cannot be compared, being other architectures.
    """

    release: Release
    kind: str
    labels: tuple[str, ...]
    difference: float | None

    @property
    def learns_classes(self) -> bool:
        """Whether rounds by its method can learn the row of a class that its base has more."""
        return any(name.startswith(f"{HEAD}.") for name in self.release.state.layout.names)

    @property
    def same(self) -> bool:
        """Whether it serves, for the old classes, what the release before serves."""
        return self.difference is not None and self.difference <= ROUNDING


def rebase(
    old: Base,
    release: Release,
    new: Base,
    *,
    number: int,
    method: str = "",
    provenance: Mapping[str, Any] = MappingProxyType({}),
) -> Rebase:
    """Make the release of another base that follows a release.

    Args:
        old: The release's base.
        release: What the fleet serves; the new release's parent.
        new: The base to go on with.
        number: Of the new release.
        method: What is trained from it on, e.g. ``core+head`` for the row of a new class to be
            learned; empty for the release's.
        provenance: Added to the release's own.

    Raises:
        MismatchError: ``already-there``, ``other-channels``, ``other-rate``, ``other-window``,
            ``other-stride``, ``labels-moved`` or ``too-many-classes`` when the base cannot go on
            where the release is; ``base-unusable`` when its network or frames are not whole;
            ``layout-shrunk``, ``release-number``.
        InputError: ``unknown-method`` and what a network raises that the method cannot adapt.
    """
    _check_fits(old, new)
    method = method or release.method
    layout = _layout(new, method)
    kind = GROWN if _is_grown(old, new) else REBASED
    make = carried_release if kind == GROWN else rebased_release
    made = replace(make(release, new, layout, number=number), method=method)
    difference = _difference(old, release, new, made)
    labels = new.record.labels[len(old.record.labels) :]
    told = {"new-labels": list(labels), "difference": difference}
    whole = MappingProxyType({**made.provenance, **told, **provenance})
    return Rebase(replace(made, provenance=whole), kind, labels, difference)


def check_same(made: Rebase) -> None:
    """Refuse a rebase that would have the fleet serve another network.

    Raises:
        MismatchError: ``another-network``.
    """
    if made.same:
        return
    far = (
        "it is another architecture"
        if made.difference is None
        else f"its largest relative difference is {made.difference:.3g}"
    )
    raise MismatchError(
        "another-network",
        f"base {made.release.base[:SHOWN]}… serves another network than the fleet's release: {far},"
        f" and a base made from it is within {ROUNDING:g}",
        "Make the base from this very release (fleet base rebase --help), or mean it: "
        "--another-network; the devices' probes still judge it.",
    )


def _check_fits(old: Base, new: Base) -> None:
    """Refuse a base whose devices would need other windows, or read other classes."""
    if new.digest == old.digest:
        raise MismatchError(
            "already-there",
            f"the fleet's release is of base {new.digest[:SHOWN]}… already",
            "Name another base: fleet base list",
        )
    one, two = old.record, new.record
    for what, own, wanted in (
        ("channels", two.channels, one.channels),
        ("rate", two.rate_hz, one.rate_hz),
        ("window", two.window, one.window),
        ("stride", two.stride, one.stride),
    ):
        if own != wanted:
            raise MismatchError(
                f"other-{what}",
                f"a fleet keeps its {what}: base {new.digest[:SHOWN]}… has {_said(own)}, the "
                f"fleet's has {_said(wanted)}",
                f"{NEXT}; for other sensors make another fleet.",
            )
    if two.labels[: len(one.labels)] != one.labels:
        raise MismatchError(
            "labels-moved",
            f"classes keep their indices: {', '.join(one.labels)} come first, base "
            f"{new.digest[:SHOWN]}… has {', '.join(two.labels)}",
            "Append new classes at the end: fleet base grow --help",
        )
    if len(two.labels) > MOST_CLASSES:
        raise MismatchError(
            "too-many-classes",
            f"devices take bases of at most {MOST_CLASSES} classes, {new.digest[:SHOWN]}… has "
            f"{len(two.labels)}",
            "Append fewer: fleet base grow --help",
        )


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{name} ({unit})" for name, unit in value)
    return f"{value:g}"


def _layout(base: Base, method: str) -> Layout:
    """Return a method's layout on a base, which somebody may have made by other means than ours."""
    try:
        return find(method).layout(folded_network(base), base.frames)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _unusable(base, method, error) from error


def _unusable(base: Base, method: str, error: Exception) -> MismatchError:
    return MismatchError(
        "base-unusable",
        f"the method {method} cannot train base {base.digest[:SHOWN]}…: {error}",
        NEXT,
    )


def _is_grown(old: Base, new: Base) -> bool:
    """Tell whether a base is another one with further rows of the head and nothing else."""
    one, two = old.record, new.record
    longer = one.model_copy(
        update={
            "labels": two.labels,
            "model": one.model.model_copy(update={"classes": len(two.labels)}),
        }
    )
    if (
        longer != two
        or old.frame_digest != new.frame_digest
        or old.arrays.keys() != new.arrays.keys()
    ):
        return False
    return all(
        np.array_equal(_old_rows(name, new.arrays[name], one.labels), array)
        for name, array in old.arrays.items()
    )


def _old_rows(name: str, array: NDArray[Any], labels: tuple[str, ...]) -> NDArray[Any]:
    """Return an array without the head's rows for further classes."""
    return array[: len(labels)] if name.startswith(f"{HEAD}.") else array


def _difference(old: Base, release: Release, new: Base, made: Release) -> float | None:
    """Return how far what a new release serves is from what the one before serves."""
    one, two = old.record, new.record
    classes = {"classes": one.model.classes}
    if two.model.model_copy(update=classes) != one.model:
        return None
    before = merge_release(old, release)
    try:
        after = merge_release(new, made)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _unusable(new, release.method, error) from error
    if before.keys() != after.keys():
        return None
    pairs = [(array, _old_rows(name, after[name], one.labels)) for name, array in before.items()]
    pairs += [(np.asarray(a), np.asarray(b)) for a, b in ((one.mean, two.mean), (one.std, two.std))]
    if any(a.shape != b.shape for a, b in pairs):
        return None
    largest = float(np.max([relative_difference(b, a) for a, b in pairs]))
    return largest if np.isfinite(largest) else None
