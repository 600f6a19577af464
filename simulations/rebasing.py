"""A new base of files: what a release serves made the base, or a head for further classes.

Frames are calibrated on source people's windows, so it is done where the data is; the server
installs the file and moves the fleet to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray

from clients.agent.store.labels import LARGEST_TEXT
from clients.link.records import LARGEST_COUNTS
from fleet.adapt.attach import adaptable_layers, make_frames
from fleet.adapt.base import Base
from fleet.adapt.frames import LEARNED_KINDS, Frame, FrameKind, check_rank
from fleet.adapt.network import folded_network
from fleet.continual.apart import apart
from fleet.continual.growth import grown, rebased
from fleet.errors import InputError, MismatchError
from fleet.federate.releases import Release
from fleet.federate.served import merge_release
from fleet.har.population import Population, windows_of
from fleet.peft.registry import METHODS, find
from server.prepare import CALIBRATION_WINDOWS, frame_sources, normalisation_of

__all__ = ["LARGEST_LABEL", "MOST_CLASSES", "Rebased", "grow", "merged_by", "rebase"]

LARGEST_LABEL = LARGEST_TEXT
"""Characters of a class name: a device's store takes no longer one."""
MOST_CLASSES = math.isqrt(LARGEST_COUNTS)
"""Classes whose confusion counts one answer of a device can hold."""

OnStep = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Rebased:
    """A new base and where it comes from.

    Args:
        base: It.
        old: The base of the release.
        release: What the new base serves without a core.
        apart: How far its folded parameters are from the merged ones, see
            :func:`fleet.continual.apart.apart`.
        people: Source people on whose windows the frames are calibrated.
    """

    base: Base
    old: Base
    release: Release
    apart: float
    people: tuple[int, ...]

    @property
    def moved(self) -> bool:
        """Whether the release moves anything; else frames alone are new."""
        return any(array.any() for array in self.release.state.arrays.values())


def rebase(
    old: Base,
    release: Release,
    population: Population,
    *,
    kind: FrameKind | None = None,
    rank: int | None = None,
    seed: int = 0,
    on_step: OnStep = lambda text: None,
) -> Rebased:
    """Make the base that serves without a core what a release of the old one serves.

    Args:
        old: The release's base.
        release: The release; its whole state goes into the kernels.
        population: The data; its source people calibrate the frames, and teach the learned kinds.
            Its labels may be fewer than the base's, which may have grown.
        kind: Frame kind; None for the base's.
        rank: Columns of each core; None for what each layer has.
        seed: Root of the simulated shifts and of the order of windows behind a learned kind.
        on_step: Told what is done, twice.

    Returns:
        The same base for the same arguments.

    Raises:
        MismatchError: What :func:`merged_by` raises; ``base-data`` when base and data do not belong
            together; ``cannot-unfold`` when a batch norm has scaled a channel to nothing.
        FrameError: ``rank-too-large``, and what :func:`fleet.adapt.calibrate.make_frames` raises.
    """
    merged = merged_by(old, release)
    _check_data(old, population)
    kind = kind or old.record.frame_kind
    ranks = _ranks(old, kind, rank)
    moved = rebased(old, release.state, old.frames)
    on_step("kernels")
    record = old.record.model_copy(
        update={"frame_kind": kind, "rank": max(ranks.values(), default=old.record.rank)}
    )
    frames = _frames(moved, population, kind, ranks, seed)
    on_step("frames")
    new = replace(moved, record=record, frames=frames)
    return Rebased(new, old, release, apart(new, merged), population.source)


def grow(base: Base, labels: Sequence[str], *, seed: int = 0) -> Base:
    """Return the base with a head for further classes, behind those that it has.

    Args:
        base: The base.
        labels: Names of the new classes.
        seed: Root of the new rows.

    Raises:
        InputError: ``bad-label``, listing every problem at once; ``too-many-classes`` beyond
            :data:`MOST_CLASSES`.
    """
    old = base.record.labels
    problems = [problem for label in dict.fromkeys(labels) for problem in _problems(label, old)]
    problems += [f"{label!r} is named twice" for label in _twice(labels)]
    if not labels:
        problems.append("there is none")
    if problems:
        raise InputError(
            "bad-label",
            f"a new class needs a name of its own of 1 to {LARGEST_LABEL} characters: "
            f"{'; '.join(problems)}",
            "The base's own: fleet base show FILE.",
        )
    if len(old) + len(labels) > MOST_CLASSES:
        raise InputError(
            "too-many-classes",
            f"a fleet's base has at most {MOST_CLASSES} classes; {len(old)} and {len(labels)} new "
            f"ones are {len(old) + len(labels)}",
            "Confusion counts of more do not fit into a device's answer.",
        )
    return grown(base, (*old, *labels), seed=seed)


def merged_by(base: Base, release: Release) -> Mapping[str, NDArray[Any]]:
    """Return the dense parameters that a release serves, if it is one of the base.

    Raises:
        MismatchError: ``no-core-state`` for a method that is none of the fleet's; ``wrong-base`` or
            ``wrong-frame``; ``wrong-layout`` or ``unknown-entry`` when the state is not the
            method's.
    """
    try:
        method = find(release.method)
    except InputError as error:
        raise MismatchError(
            "no-core-state",
            f"release {release.number} was made by {release.method!r}, which trains no core state",
            f"A base is made of a release of {', '.join(sorted(METHODS))}, or two joined by +.",
        ) from error
    merged = merge_release(base, release)
    wanted = method.layout(folded_network(base), base.frames)
    if release.state.layout != wanted:
        raise MismatchError(
            "wrong-layout",
            f"release {release.number} moves {', '.join(release.state.layout.names)}; "
            f"{release.method} trains {', '.join(wanted.names)} of its base, all of each",
            "Take it from its folder or from the server again: fleet release export.",
        )
    return merged


def _problems(label: str, there: Sequence[str]) -> list[str]:
    if label in there:
        return [f"{label!r} is there already"]
    if not label.strip():
        return [f"{label!r} is empty"]
    if label != label.strip() or not label.isprintable():
        return [f"{label!r} begins or ends with a space, or holds what cannot be printed"]
    if len(label) > LARGEST_LABEL:
        return [f"{label[:20]!r}… has {len(label)}"]
    return []


def _twice(labels: Sequence[str]) -> list[str]:
    return sorted({label for label in labels if labels.count(label) > 1})


def _check_data(base: Base, population: Population) -> None:
    """Refuse data that the base cannot compute with, or whose classes are not its first ones."""
    record, dataset = base.record, population.dataset
    channels = tuple((channel.name, channel.unit) for channel in dataset.channels)
    begun = record.labels[: len(dataset.labels)] == dataset.labels
    for what, fits, has, needs in (
        ("classes", begun, record.labels, dataset.labels),
        ("channels", record.channels == channels, record.channels, channels),
        ("samples per window", record.window == dataset.window, record.window, dataset.window),
        ("rate", record.rate_hz == dataset.rate_hz, record.rate_hz, dataset.rate_hz),
    ):
        if not fits:
            raise MismatchError(
                "base-data",
                f"the base has {what} {has}, the data set {dataset.name} has {needs}",
                "Name the data that the base was trained on: fleet base show FILE. Its classes are "
                "the base's first ones; --classes all takes all of them.",
            )


def _ranks(base: Base, kind: FrameKind, rank: int | None) -> Mapping[str, int]:
    """Return the rank of each layer, before the work of a learned kind begins.

    Raises:
        FrameError: ``rank-too-large``.
    """
    layers = adaptable_layers(folded_network(base))[0]
    ranks = (
        {name: frame.rank for name, frame in base.frames.items()}
        if rank is None
        else dict.fromkeys(layers, rank)
    )
    for name, layer in layers.items():
        if name not in ranks:
            continue
        shape, groups = layer.get_parameter("weight").shape, int(getattr(layer, "groups", 1))
        check_rank(shape, kind, ranks[name], groups=groups, layer=name)
    return ranks


def _frames(
    base: Base, population: Population, kind: FrameKind, ranks: Mapping[str, int], seed: int
) -> Mapping[str, Frame]:
    """Make frames as ``server.prepare.renewed_frames`` does, with a rank for each layer."""
    normalisation, people = normalisation_of(base), population.source
    sources = None
    if kind in LEARNED_KINDS:
        sources = frame_sources(population, people, normalisation, seed=seed)
    x = windows_of(population, people, normalisation).x
    windows = torch.from_numpy(x[:: -(-len(x) // CALIBRATION_WINDOWS)])
    return make_frames(folded_network(base), kind, ranks, windows, sources=sources, seed=seed)
