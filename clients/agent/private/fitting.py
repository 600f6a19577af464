"""A private core on another base, other frames or another layout than it was learned on. Pure."""

from __future__ import annotations

from fleet.adapt.base import Base
from fleet.adapt.state import CoreState, Layout
from fleet.continual.growth import carried
from fleet.continual.personal import re_expressed
from fleet.errors import MismatchError

__all__ = ["fitted"]


def fitted(core: CoreState, frame: str, old: Base | None, new: Base, layout: Layout) -> CoreState:
    """Return a private core as the new base takes it.

    Carried entry by entry where the frames are the same and the head has grown, re-expressed where
    the frames are others.

    Args:
        core: In the old base's frames.
        frame: Digest of those frames.
        old: The base before; None when the device has it no more.
        new: The base now.
        layout: Of what is trained on it.

    Raises:
        MismatchError: Why it cannot be taken along: ``personal-base-missing``, ``labels-moved``,
            ``other-architecture``, ``layout-shrunk``, ``personal-lost``.
    """
    if old is not None:
        _check_alike(old, new)
    if frame == new.frame_digest:
        found = _in_same_frames(core, old, new, layout)
    elif old is None:
        raise MismatchError(
            "personal-base-missing",
            f"the frames are others than {frame[:12]}…, and the base that had them is gone",
        )
    else:
        found = re_expressed(core, old, new, layout)
    if not found.finite or not bool(found.flat().any()):
        raise MismatchError("personal-lost", "nothing of it can be said in the new frames")
    return found


def _in_same_frames(core: CoreState, old: Base | None, new: Base, layout: Layout) -> CoreState:
    try:
        return carried(core, layout)
    except MismatchError:
        # Another method or rank on the same kernels: as near as it reaches.
        if old is None or old.digest != new.digest:
            raise
        return re_expressed(core, old, new, layout)


def _check_alike(old: Base, new: Base) -> None:
    before, after = old.record, new.record
    # Also back from a grown base: what has no entry for the further classes fits as it is.
    if any(one != two for one, two in zip(before.labels, after.labels, strict=False)):
        raise MismatchError(
            "labels-moved",
            f"classes were {', '.join(before.labels)} and are {', '.join(after.labels)}",
        )
    classes = {"classes": after.model.classes}
    if before.model.model_copy(update=classes) != after.model:
        raise MismatchError(
            "other-architecture", f"{before.model.name} has become another {after.model.name}"
        )
