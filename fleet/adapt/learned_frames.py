"""Frames learned from source people: the directions in which their data pull the kernels.

A frame of a kernel's own spectrum says which directions the base uses; a learned one says in which
the base would move. For each batch (one per source person and simulated shift) a matrix
``D (O, I/g·Πk)`` is taken per layer:

``gradient``
    the gradient of the mean cross-entropy with respect to the kernel, at the base;
``people``
    the change of the kernel in a copy of the network that was fine-tuned on the batch.

Each D is divided by its Frobenius norm, layer by layer, so that no person dominates: someone whom
the base fits badly has gradients many times as long as the others' and would decide the frame
alone. S is the leading right singular vectors of all D stacked, ``(Σ O, I/g·Πk)``. They are
the eigenvectors of the Gram matrix ``Σ DᵀD``, which is all that is kept between batches, so memory
does not grow with their number. One frame serves all groups of a grouped kernel, as for ``tt``.

Gradients, Gram matrices and cuts are float64, rounded once; fine-tuning is float32. Batches come
from source people alone: a frame that had seen the fleet's windows would leak them to every device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fleet.adapt.core_layer import adaptable_layers, single_thread
from fleet.adapt.frames import Frame, FrameKind, check_rank, check_spectrum, right_signs
from fleet.adapt.stepper import SGD, Stepper
from fleet.errors import FrameError
from fleet.seeds import generator

__all__ = [
    "PEOPLE_RATE",
    "PEOPLE_STEPS",
    "Ranks",
    "Sources",
    "gradient_frames",
    "gradient_grams",
    "learned_frame",
    "people_frames",
    "people_grams",
    "ranks_by_layer",
]

# One rank for all adaptable layers, or ranks by layer.
Ranks: TypeAlias = int | Mapping[str, int]
# Batches of windows (n, channels, window) float32 and labels (n,) int64.
Sources: TypeAlias = Sequence[tuple[torch.Tensor, torch.Tensor]]

# Windows per forward and backward pass.
MICRO_BATCH = 64
# Singular values are square roots of a float64 Gram matrix's eigenvalues: below this fraction of
# the largest they are rounding.
LEARNED_GAP = 1e-6
# Fine-tuning behind a people frame: enough to turn the kernels, too little to leave the base.
PEOPLE_STEPS = 10
PEOPLE_RATE = 0.01

Grams: TypeAlias = dict[str, NDArray[np.float64]]


def gradient_frames(folded: nn.Module, ranks: Ranks, batches: Sources) -> dict[str, Frame]:
    """Make ``gradient`` frames, not calibrated.

    Args:
        folded: Folded network; not changed.
        ranks: Columns of each core, see :func:`ranks_by_layer`.
        batches: One batch per source person and simulated shift.

    Raises:
        FrameError: ``no-sources``, ``source-not-finite``, ``rank-too-large``, ``rank-deficient``,
            ``degenerate-spectrum`` or ``unknown-layer``.
    """
    wide = ranks_by_layer(folded, ranks)
    return _frames(folded, "gradient", wide, gradient_grams(folded, list(wide), batches))


def people_frames(
    folded: nn.Module,
    ranks: Ranks,
    batches: Sources,
    *,
    steps: int = PEOPLE_STEPS,
    learning_rate: float = PEOPLE_RATE,
    seed: int = 0,
) -> dict[str, Frame]:
    """Make ``people`` frames, not calibrated.

    Args:
        folded: Folded network; not changed.
        ranks: Columns of each core, see :func:`ranks_by_layer`.
        batches: One batch per source person and simulated shift.
        steps: Steps of SGD (momentum 0.9, :data:`MICRO_BATCH` windows) on every parameter.
        learning_rate: Step size.
        seed: Root of the order of the windows.

    Raises:
        FrameError: As for :func:`gradient_frames`.
    """
    wide = ranks_by_layer(folded, ranks)
    grams = people_grams(
        folded, list(wide), batches, steps=steps, learning_rate=learning_rate, seed=seed
    )
    return _frames(folded, "people", wide, grams)


def gradient_grams(folded: nn.Module, layers: Sequence[str], batches: Sources) -> Grams:
    """Return ``Σ DᵀD`` ``(I/g·Πk, I/g·Πk)`` of the batches' normalised gradients by layer.

    One forward and backward pass per batch in evaluation mode, in micro-batches.

    Raises:
        FrameError: ``no-sources`` or ``source-not-finite``.
    """

    def gradients() -> Iterator[dict[str, torch.Tensor]]:
        network = copy.deepcopy(folded).double().requires_grad_(False).eval()
        kernels = {name: network.get_parameter(f"{name}.weight") for name in layers}
        for kernel in kernels.values():
            kernel.requires_grad_(True)
        for x, y in batches:
            for part, labels in _parts(x, y):
                loss = functional.cross_entropy(network(part.double()), labels, reduction="sum")
                (loss / len(y)).backward()  # type: ignore[no-untyped-call]
            yield {name: _taken(kernel) for name, kernel in kernels.items()}

    return _accumulated(gradients(), layers, batches, "gradients")


def people_grams(
    folded: nn.Module,
    layers: Sequence[str],
    batches: Sources,
    *,
    steps: int = PEOPLE_STEPS,
    learning_rate: float = PEOPLE_RATE,
    seed: int = 0,
) -> Grams:
    """Return ``Σ DᵀD`` of the normalised changes that fine-tuning on each batch makes, by layer.

    Raises:
        FrameError: ``no-sources`` or ``source-not-finite``.
    """

    def changes() -> Iterator[dict[str, torch.Tensor]]:
        for number, (x, y) in enumerate(batches):
            network = copy.deepcopy(folded).float().requires_grad_(True).eval()
            stepper = Stepper(dict(network.named_parameters()), SGD(learning_rate, momentum=0.9))
            random = generator(seed, 0, f"source-{number}", "people frames")
            for _ in range(steps):
                chosen = torch.from_numpy(random.permutation(len(y))[:MICRO_BATCH])
                stepper.clear()
                loss = functional.cross_entropy(network(x[chosen]), y[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                stepper.step()
            yield {
                name: network.get_parameter(f"{name}.weight").detach().double()
                - folded.get_parameter(f"{name}.weight").detach().double()
                for name in layers
            }

    return _accumulated(changes(), layers, batches, "changes")


def learned_frame(
    gram: NDArray[np.float64],
    kind: FrameKind,
    rank: int,
    *,
    shape: Sequence[int],
    groups: int = 1,
    layer: str = "layer",
) -> Frame:
    """Cut a frame from the Gram matrix of one layer.

    Args:
        gram: float64 ``(I/g·Πk, I/g·Πk)``.
        kind: ``gradient`` or ``people``.
        rank: Columns of the core.
        shape: The kernel's shape ``(O, I/g, *k)``.
        groups: Groups of the convolution.
        layer: Name used in errors.

    Returns:
        Frame with orthonormal rows S ``(r, I/g, *k)``; each one's largest entry is positive.

    Raises:
        FrameError: ``rank-too-large``, ``rank-deficient`` or ``degenerate-spectrum``.
    """
    check_rank(shape, kind, rank, groups=groups, layer=layer)
    values, vectors = np.linalg.eigh(gram)
    sigma = np.sqrt(np.maximum(values[::-1], 0.0))
    check_spectrum(sigma, rank, layer, what=f"stack of {kind} directions", gap=LEARNED_GAP)
    rows = vectors[:, ::-1].T[:rank]
    suffix = (rows * right_signs(rows)[:, None]).reshape(rank, *shape[1:])
    return Frame(kind, rank, groups, np.ascontiguousarray(suffix, dtype=np.float32))


def ranks_by_layer(folded: nn.Module, ranks: Ranks) -> dict[str, int]:
    """Return the rank of each layer that carries a core.

    Args:
        folded: Folded network.
        ranks: One rank for all adaptable layers, or ranks by layer; layers that a mapping does not
            name, or gives 0, carry no core.

    Raises:
        FrameError: ``unknown-layer`` when a mapping names a layer that is not adaptable.
    """
    layers, left = adaptable_layers(folded)
    if isinstance(ranks, int):
        return dict.fromkeys(layers, ranks)
    for name in ranks:
        if name not in layers:
            reason = left.get(name, f"adaptable are {', '.join(layers)}")
            raise FrameError("unknown-layer", f"no core fits a layer {name!r}: {reason}", "")
    return {name: ranks[name] for name in layers if ranks.get(name, 0) != 0}


def _frames(
    folded: nn.Module, kind: FrameKind, ranks: Mapping[str, int], grams: Grams
) -> dict[str, Frame]:
    with single_thread():
        return {
            name: learned_frame(
                grams[name],
                kind,
                rank,
                shape=folded.get_parameter(f"{name}.weight").shape,
                groups=int(folded.get_submodule(name).groups),  # type: ignore[arg-type]
                layer=name,
            )
            for name, rank in ranks.items()
        }


def _accumulated(
    matrices: Iterator[dict[str, torch.Tensor]], layers: Sequence[str], batches: Sources, what: str
) -> Grams:
    """Add up the Gram matrices of one matrix per layer and batch, each divided by its norm."""
    if not batches or not all(len(y) for _, y in batches):
        raise FrameError(
            "no-sources",
            "a learned frame needs source batches, each with windows; these have "
            f"{[len(y) for _, y in batches]}",
            "Give at least one source person's windows.",
        )
    grams: Grams = {}
    with single_thread():
        for number, found in enumerate(matrices):
            for name in layers:
                rows = found[name].numpy().reshape(len(found[name]), -1)
                norm = float(np.linalg.norm(rows))
                if not np.isfinite(norm):
                    raise FrameError(
                        "source-not-finite",
                        f"{name}: the {what} of source batch {number} hold NaN or infinity",
                        "Look at the data's ranges: fleet data inspect.",
                    )
                unit = rows / norm if norm else rows
                grams[name] = grams.get(name, 0.0) + unit.T @ unit
    return grams


def _parts(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(torch.split(x, MICRO_BATCH), torch.split(y, MICRO_BATCH), strict=True)


def _taken(kernel: torch.Tensor) -> torch.Tensor:
    """Return a kernel's gradient and clear it; zeros where the loss does not depend on it."""
    gradient, kernel.grad = kernel.grad, None
    return torch.zeros_like(kernel) if gradient is None else gradient
