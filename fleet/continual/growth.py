"""Growth and rebase: a new base made of an old one, which devices that were away can follow.

*Growth* appends outputs to the head for classes that have appeared; old classes keep their indices
and frames stay, so a release of the old base carries over entry by entry. *Rebase* moves the base's
kernels to where a release has brought them and gives them new frames; cores start from zero again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.base import Base
from fleet.adapt.fold import fold, norms_behind
from fleet.adapt.frames import Frame
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, raw_network
from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError
from fleet.federate.releases import Release
from fleet.models.grow import grow_head
from fleet.peft.batch_norm import batch_norms

__all__ = ["carried", "carried_release", "grown", "rebased", "rebased_release"]

# Relative to the largest entry of a kernel: what one rounding of unfolding and folding moves.
ROUNDING = 1e-5


def grown(base: Base, labels: Sequence[str], *, seed: int) -> Base:
    """Return the base with a head for further classes; the same on every machine.

    Args:
        base: The base.
        labels: All class names; the base's own come first, in their order.
        seed: Root of the new rows, see :func:`fleet.models.grow.grow_head`.

    Raises:
        MismatchError: ``labels-moved`` when old classes would change their indices.
    """
    old = base.record.labels
    if tuple(labels[: len(old)]) != old:
        raise MismatchError(
            "labels-moved",
            f"classes keep their indices: {', '.join(old)} come first, not {', '.join(labels)}",
            "Append new classes at the end.",
        )
    network = grow_head(raw_network(base), len(labels), seed=seed)
    model = base.record.model.model_copy(update={"classes": len(labels)})
    record = base.record.model_copy(update={"model": model, "labels": tuple(labels)})
    return replace(base, record=record, arrays=_arrays(network))


def carried(state: CoreState, layout: Layout) -> CoreState:
    """Return a state in the layout of a grown base: new rows are zero, old entries are unmoved.

    Raises:
        MismatchError: ``layout-shrunk`` when an entry would lose something.
    """
    arrays = {}
    for name, shape in layout.entries:
        old = state.arrays.get(name)
        new = np.zeros(shape, np.float32)
        if old is not None:
            if old.ndim != new.ndim or any(a > b for a, b in zip(old.shape, shape, strict=True)):
                raise MismatchError(
                    "layout-shrunk", f"the entry {name} is {old.shape}; it cannot become {shape}"
                )
            new[tuple(slice(size) for size in old.shape)] = old
        arrays[name] = new
    if lost := sorted(set(state.arrays) - set(arrays)):
        raise MismatchError("layout-shrunk", f"the new layout has no entry {lost[0]}")
    return CoreState.of(arrays)


def carried_release(release: Release, base: Base, layout: Layout, *, number: int = 0) -> Release:
    """Return the release of a grown base that serves what one of the old base served.

    Args:
        release: The old base's, the new one's parent.
        base: The grown base.
        layout: Of the release's method on it.
        number: Of the new release; by default the parent's plus one, see ``next_release``.

    Raises:
        MismatchError: ``release-number`` when the number is not above the parent's;
            ``layout-shrunk``.
    """
    state = carried(release.state, layout)
    provenance = MappingProxyType({"grown-from": release.base, "labels": list(base.record.labels)})
    return Release(
        _number_after(release, number),
        base.digest,
        base.frame_digest,
        release.digest,
        release.method,
        state,
        provenance,
    )


def rebased(base: Base, state: CoreState, frames: Mapping[str, Frame]) -> Base:
    """Return a base whose network is the old one where a release has brought it.

    Args:
        base: The old base.
        state: The release's core state.
        frames: Frames of the new folded kernels. They are sent, never recomputed elsewhere: a
            singular value decomposition has other last bits on other machines.

    Returns:
        A base with batch norms as before, whose folded parameters are the merged ones up to one
        rounding (:data:`ROUNDING`).

    Raises:
        MismatchError: ``cannot-unfold`` when a batch norm has scaled a channel to nothing.
    """
    raw, folded = raw_network(base), parameters_of(folded_network(base))
    norms = {layer: batch_norms(raw)[name] for layer, name in norms_behind(raw).items()}
    merged = merge(folded, base.frames, state)
    with torch.no_grad():
        for name, values in merged.items():
            delta = torch.from_numpy(values.astype(np.float64) - folded[name])
            if bool(delta.any()):
                _unfold(raw, norms.get(name.rpartition(".")[0]), name, delta)
    _check_close(fold(raw), merged)
    return replace(base, arrays=_arrays(raw), frames=MappingProxyType(dict(frames)))


def rebased_release(release: Release, base: Base, layout: Layout, *, number: int = 0) -> Release:
    """Return the release of a rebased base that serves what one of the old base served: no core.

    Args:
        release: The old base's, the new one's parent.
        base: The rebased base.
        layout: Of the release's method on it.
        number: Of the new release; by default the parent's plus one, see ``next_release``.

    Raises:
        MismatchError: ``release-number`` when the number is not above the parent's.
    """
    return Release(
        _number_after(release, number),
        base.digest,
        base.frame_digest,
        release.digest,
        release.method,
        CoreState.zero(layout),
        MappingProxyType({"rebased-from": release.base}),
    )


def _number_after(parent: Release, number: int) -> int:
    number = number or parent.number + 1
    if number <= parent.number:
        raise MismatchError(
            "release-number",
            f"release numbers ascend: {number} cannot follow {parent.number}",
        )
    return number


def _unfold(raw: nn.Module, norm: nn.Module | None, name: str, delta: torch.Tensor) -> None:
    """Move what a folded parameter came from so that it folds to ``delta`` more."""
    if norm is None:
        target = raw.get_parameter(name)
    elif name.endswith(".bias"):
        # Folding adds the norm's own bias as it is.
        target = norm.get_parameter("bias")
    else:
        variance = norm.get_buffer("running_var").double() + float(getattr(norm, "eps", 0.0))
        scale = norm.get_parameter("weight").double() / torch.sqrt(variance)
        target, delta = raw.get_parameter(name), delta / scale.view(-1, *(1,) * (delta.dim() - 1))
    if not bool(torch.isfinite(delta).all()):
        raise MismatchError(
            "cannot-unfold",
            f"the batch norm behind {name} scales a channel to nothing, so it cannot move",
            "Keep this base.",
        )
    target.copy_((target.double() + delta).to(target.dtype))


def _check_close(folded: nn.Module, merged: Mapping[str, NDArray[np.float32]]) -> None:
    for name, values in parameters_of(folded).items():
        scale = float(np.abs(merged[name]).max(initial=0.0)) or 1.0
        if float(np.abs(values - merged[name]).max(initial=0.0)) > ROUNDING * scale:
            raise MismatchError(
                "cannot-unfold", f"{name} of the new base is not where the release had it", ""
            )


def _arrays(network: nn.Module) -> Mapping[str, NDArray[np.float32]]:
    return MappingProxyType({name: np.array(t.numpy()) for name, t in network.state_dict().items()})
