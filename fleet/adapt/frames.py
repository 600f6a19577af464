"""Frames: the frozen low-rank basis of a layer, made once from its kernel by TT-SVD.

For a kernel ``K (O, I/g, *k)`` and a core ``C (O, r)`` the adapted kernel is ``K + C·S`` with a
frozen suffix ``S (r, I/g, *k)`` (LoRA-Edge, arXiv 2511.03765, Sec. III). Two frames give S:

``tt``
    LoRA-Edge's own: every bond of the tensor train is cut to r; ``S = G2·G3·…·Gd``.
``svd``
    Only the output bond is cut. With ``K = U Σ Vᵀ`` as an ``O × (I/g·Πk)`` matrix,
    ``S = Σ_r V_rᵀ = M·K`` with ``M = U_rᵀ``: the core path is then an r-channel bottleneck on the
    *output* of the frozen convolution (no second convolution), and only M needs to be kept.

``random``
    S is random, from a seed named after the layer: what LoRA with its first factor frozen trains
    (LoRA-FA, arXiv 2308.03303; FFA-LoRA, arXiv 2403.12313). The control for the other two.

``gradient``, ``people``
    S is learned from the source people's windows, see :mod:`fleet.adapt.learned_frames`: the
    leading right singular vectors of their gradients, or of what fine-tuning on each one changes.

Gauge: cuts go left to right, output mode first; singular values are pushed right (S carries Σ);
the largest entry of each right vector is positive. Frames are computed in float64, rounded once to
float32 and then shipped with the base. They are never recomputed on a device, because signs and
degenerate subspaces differ between linear-algebra libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.digest import digest_arrays
from fleet.errors import FrameError
from fleet.seeds import generator

__all__ = [
    "DEGENERATE_GAP",
    "FRAME_KINDS",
    "LEARNED_KINDS",
    "Frame",
    "FrameKind",
    "check_rank",
    "check_spectrum",
    "largest_rank",
    "make_frame",
    "numerical_rank",
    "right_signs",
    "tt_svd",
]

FrameKind = Literal["svd", "tt", "random", "gradient", "people"]
FRAME_KINDS: tuple[FrameKind, ...] = get_args(FrameKind)
# Kinds that no kernel alone can give.
LEARNED_KINDS: tuple[FrameKind, ...] = ("gradient", "people")

# Two singular values closer than this fraction of the largest span one plane that no rule can
# split reproducibly.
DEGENERATE_GAP = 1e-7


@dataclass(frozen=True, eq=False)
class Frame:
    """The frozen basis of one layer.

    Args:
        kind: One of :data:`FRAME_KINDS`.
        rank: r, the number of columns of the layer's core.
        groups: Groups of the convolution; 1 for a linear layer.
        array: float32. ``svd``: M ``(groups, r, O/groups)`` with orthogonal rows, orthonormal
            until they are scaled; else S ``(r, I/groups, *k)``, shared by all groups.
    """

    kind: FrameKind
    rank: int
    groups: int
    array: NDArray[np.float32]

    @cached_property
    def digest(self) -> str:
        """Digest of kind, rank, groups and bits."""
        return digest_arrays({"frame": self.array}, [self.kind, self.rank, self.groups])

    def suffix(self, kernel: NDArray[Any]) -> NDArray[np.float64]:
        """Return S ``(groups, r, I/groups, *k)`` in float64, in one definition on every machine.

        For the ``svd`` frame the product ``M·K`` is a fixed-order loop of separate multiply and add
        passes over the outputs: a BLAS product would round differently on each machine.

        Args:
            kernel: The layer's dense kernel ``(O, I/groups, *k)``.
        """
        if self.kind != "svd":
            suffix = self.array.astype(np.float64)
            return np.broadcast_to(suffix, (self.groups, *suffix.shape))
        grouped = kernel.astype(np.float64).reshape(self.groups, -1, *kernel.shape[1:])
        mixing = self.array.astype(np.float64)
        total = np.zeros((self.groups, self.rank, *kernel.shape[1:]))
        lift = (...,) + (None,) * (kernel.ndim - 1)
        for output in range(grouped.shape[1]):
            total = total + mixing[:, :, output][lift] * grouped[:, None, output]
        return total

    def scaled(self, factors: NDArray[np.float64]) -> Frame:
        """Return the frame with each direction multiplied by a factor.

        The space that cores can reach stays the same; only step sizes change.

        Args:
            factors: float64 ``(groups, r)`` for ``svd``, ``(r,)`` for the others.
        """
        lead = 2 if self.kind == "svd" else 1
        lift = factors.reshape(factors.shape + (1,) * (self.array.ndim - lead))
        return replace(self, array=(self.array.astype(np.float64) * lift).astype(np.float32))

    def truncated(self, rank: int) -> Frame:
        """Return the first ``rank`` directions; frames of all kinds but ``tt`` nest.

        Raises:
            FrameError: ``frame-not-nested`` for ``tt``; ``rank-too-large`` beyond this rank.
        """
        if rank == self.rank:
            return self
        if self.kind == "tt":
            raise FrameError(
                "frame-not-nested",
                f"a tt frame of rank {self.rank} has no sub-frame of rank {rank}",
                "Frames of the other kinds are nested; or make a base with the rank that you want.",
            )
        if not 1 <= rank < self.rank:
            raise FrameError(
                "rank-too-large", f"this frame has rank {self.rank}; rank {rank} was asked for"
            )
        kept = self.array[:, :rank] if self.kind == "svd" else self.array[:rank]
        return replace(self, rank=rank, array=np.ascontiguousarray(kept))


def make_frame(
    kernel: NDArray[Any], kind: FrameKind, rank: int, *, groups: int = 1, layer: str = "layer"
) -> Frame:
    """Make the frame of one kernel.

    Args:
        kernel: Dense kernel ``(O, I/groups, *k)`` of a convolution, or ``(O, I)`` of a linear
            layer.
        kind: ``svd`` (one frame per group), ``tt`` or ``random`` (one over all outputs).
        rank: Columns of the core.
        groups: Groups of the convolution.
        layer: Name used in errors.

    Raises:
        FrameError: ``rank-too-large``, ``rank-deficient``, ``degenerate-spectrum``,
            ``kernel-not-finite``, or ``frame-needs-data`` for a learned kind.
    """
    if kind in LEARNED_KINDS:
        raise FrameError(
            "frame-needs-data",
            f"{layer}: a {kind} frame is learned from source people's windows, not from a kernel",
            "Give make_frames the sources, or choose svd, tt or random.",
        )
    if not np.isfinite(kernel).all():
        raise FrameError("kernel-not-finite", f"{layer}: the kernel holds NaN or infinity")
    check_rank(kernel.shape, kind, rank, groups=groups, layer=layer)
    if kind == "random":
        random = generator(0, 0, layer, "random frame").normal(size=(rank, *kernel.shape[1:]))
        fan_in = int(np.prod(kernel.shape[1:]))
        return Frame("random", rank, groups, (random / np.sqrt(fan_in)).astype(np.float32))
    exact = kernel.astype(np.float64)
    if kind == "tt":
        suffix = _contract(tt_svd(exact, rank, layer=layer)[1:])
        return Frame("tt", rank, groups, suffix.astype(np.float32))
    rows = exact.reshape(groups, kernel.shape[0] // groups, -1)
    mixing = np.stack([_cut(group, rank, layer)[0].T for group in rows])
    return Frame("svd", rank, groups, np.ascontiguousarray(mixing, dtype=np.float32))


def largest_rank(shape: Sequence[int], kind: FrameKind, groups: int = 1) -> int:
    """Return the largest rank: ``min(O/g, I/g·Πk)`` for svd, else ``min(O, I/g·Πk)``."""
    outputs, inputs = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    return min(outputs // groups if kind == "svd" else outputs, inputs)


def check_rank(
    shape: Sequence[int], kind: FrameKind, rank: int, *, groups: int = 1, layer: str = "layer"
) -> None:
    """Refuse a rank that no frame of a kernel of this shape can have.

    Raises:
        FrameError: ``rank-too-large``.
    """
    most = largest_rank(shape, kind, groups)
    if not 1 <= rank <= most:
        raise FrameError(
            "rank-too-large",
            f"{layer}: rank {rank} is not possible; a kernel {tuple(shape)} with "
            f"{groups} group(s) has a {kind} frame of rank 1 to {most}",
            f"Choose --rank {most} or less.",
        )


def tt_svd(
    tensor: NDArray[np.float64], rank: int, *, layer: str = "tensor"
) -> list[NDArray[np.float64]]:
    """Decompose a tensor into a train whose bonds are all cut to ``rank`` (Oseledets 2011, Alg. 1).

    Args:
        tensor: float64 ``(n1, …, nd)``; mode 1 is the output mode.
        rank: Largest bond; a bond that cannot be that wide is as wide as it can be.
        layer: Name used in errors.

    Returns:
        d cores: ``(n1, r1)``, ``(r1, n2, r2)``, …, ``(r_{d-1}, nd)``; all but the last have
        orthonormal columns, the last carries the singular values.
    """
    cores: list[NDArray[np.float64]] = []
    rest = tensor.reshape(1, -1)
    bond = 1
    for mode, width in enumerate(tensor.shape[:-1]):
        matrix = rest.reshape(bond * width, -1)
        cut = min(rank, *matrix.shape)
        if mode > 0:
            # An inner bond may be narrower than asked, e.g. for filters that are constant in time.
            cut = min(cut, numerical_rank(np.linalg.svd(matrix, compute_uv=False)))
        left, rest = _cut(matrix, cut, layer)
        cores.append(left if mode == 0 else left.reshape(bond, width, -1))
        bond = left.shape[1]
    cores.append(rest)
    return cores


def _cut(
    matrix: NDArray[np.float64], rank: int, layer: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split ``matrix ≈ left·right`` at ``rank``; left has orthonormal columns, right carries Σ."""
    u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    check_spectrum(sigma, rank, layer)
    signs = right_signs(v[:rank])
    return u[:, :rank] * signs, (sigma[:rank] * signs)[:, None] * v[:rank]


def right_signs(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sign ``(r,)`` that makes the largest entry of each row ``(r, n)`` positive."""
    peak = np.argmax(np.abs(vectors), axis=1)
    return np.where(vectors[np.arange(len(vectors)), peak] < 0, -1.0, 1.0)


def numerical_rank(sigma: NDArray[np.floating[Any]], gap: float = DEGENERATE_GAP) -> int:
    """Return how many singular values, in descending order, stand above ``gap`` × the largest."""
    return int(np.sum(sigma > gap * sigma[0]))


def check_spectrum(
    sigma: NDArray[np.float64],
    rank: int,
    layer: str,
    *,
    what: str = "kernel",
    gap: float = DEGENERATE_GAP,
) -> None:
    """Refuse a cut after ``rank`` singular values that is not reproducible.

    Args:
        sigma: Singular values in descending order.
        rank: Where the cut is.
        layer: Name used in errors.
        what: Whose spectrum it is, for errors.
        gap: Smallest reproducible difference, as a fraction of the largest singular value.

    Raises:
        FrameError: ``rank-deficient`` or ``degenerate-spectrum``.
    """
    tolerance = gap * sigma[0]
    if sigma[rank - 1] <= tolerance:
        possible = numerical_rank(sigma, gap)
        raise FrameError(
            "rank-deficient",
            f"{layer}: the {what} has rank {possible}, below the rank {rank} that was asked for",
            f"Choose --rank {possible} or less." if possible else f"The {what} is zero.",
        )
    if rank < len(sigma) and sigma[rank - 1] - sigma[rank] <= tolerance:
        raise FrameError(
            "degenerate-spectrum",
            f"{layer}: rank {rank} cuts between equal singular values "
            f"({sigma[rank - 1]:.6g} and {sigma[rank]:.6g}), so the frame is not defined",
            "Choose a rank at a gap of the spectrum, one more or one less.",
        )


def _contract(cores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    product = cores[0]
    for core in cores[1:]:
        product = np.tensordot(product, core, axes=1)
    return product
