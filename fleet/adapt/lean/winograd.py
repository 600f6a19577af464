r"""Minimal filtering: a frozen one-dimensional kernel with half of the products or fewer.

Four neighbouring outputs of a filter of k taps need 4·k products directly and only k + 3 in a
transformed domain (Winograd 1980; Lavin & Gray, arXiv 1509.09308; the matrices are
Toom-Cook's). For tiles of k + 3 input positions, four apart,

    V = Bᵀ·x      M_p = V_p·U_p  with  U_p = (G·K0)_p      y = Aᵀ·M

for each point p, so a convolution becomes k + 3 products of matrices ``(tiles, C)·(C, O)``. A
kernel that never changes is transformed once. The gradient of the input is another such filter, of
the kernel with taps reversed and channels swapped.

Points are 0, ±1, ±2, ±1/2 and ∞, and rows are scaled to unit sums: in float32 the error is two to
three times that of the direct sum (both near 3e-7 of the output's norm).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["TAPS", "TILE", "Winograd", "matrices"]

# Outputs per tile. Two save less, six lose two digits.
TILE = 4
# Kernel lengths that the points suffice for and that gain.
TAPS = (3, 4, 5)
# Bytes of transformed windows that run together: more leave the caches, fewer mean more calls.
BLOCK_BYTES = 3 << 20
# Numbers of windows and tiles that a kernel keeps room for: batches, and what is left of them.
LARGEST_ROOMS = 8
# The point 1, where an output's constant part lies: its column of Aᵀ is constant.
POINT_ONE = 1

_POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2")))


class Winograd:
    """One kernel in the transformed domain, with the room that it computes in.

    Not for use from many threads at once.

    Args:
        kernel: ``(O, C, k)``, k one of :data:`TAPS`.
        padding: Zeros on both sides of a window.
    """

    def __init__(self, kernel: torch.Tensor, padding: int) -> None:
        self.outputs, self.inputs, taps = kernel.shape
        self.taps, self.padding = taps, padding
        self.points = TILE + taps - 1
        back, filters, forth = (torch.from_numpy(each) for each in matrices(taps))
        self._back, self._forth = back.to(kernel), forth.to(kernel)
        found = torch.einsum("pk,ock->pco", filters.to(kernel.device), kernel.detach().double())
        self._kernel = found.to(kernel).contiguous()
        self._rooms: dict[tuple[int, int], _Room] = {}

    @classmethod
    def transposed(cls, kernel: torch.Tensor, padding: int) -> Winograd:
        """Return the filter that turns an output's gradient into the input's."""
        return cls(kernel.detach().flip(2).transpose(0, 1), kernel.shape[2] - 1 - padding)

    def __call__(self, x: torch.Tensor, constant: torch.Tensor | None = None) -> torch.Tensor:
        """Return the filtered windows.

        Args:
            x: ``(n, C, positions)``, channels last in memory.
            constant: What is added at every position: ``(O,)``, or ``(n, O)`` by window.

        Returns:
            ``(n, O, positions + 2·padding - k + 1)``, channels last in memory.
        """
        rows = x.movedim(1, -1)
        length = rows.shape[1] + 2 * self.padding - self.taps + 1
        tiles = -(-length // TILE)
        y = rows.new_empty((len(rows), tiles * TILE, self.outputs))
        block = self._block(tiles)
        if constant is not None:
            constant = constant.expand(len(rows), self.outputs)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            self._run(rows[part], y[part], tiles, None if constant is None else constant[part])
        return y[:, :length].contiguous().movedim(-1, 1)

    def _run(
        self, x: torch.Tensor, y: torch.Tensor, tiles: int, constant: torch.Tensor | None
    ) -> None:
        room, end = self._room_for(len(x), tiles), self.padding + x.shape[1]
        room.padded[:, self.padding : end] = x
        if end < room.padded.shape[1]:
            # Of a longer window that ran before.
            room.padded[:, end:] = 0
        room.gathered.copy_(room.tiles)
        torch.bmm(room.forth, room.flat, out=room.wide)
        torch.bmm(room.by_point, self._kernel, out=room.products)
        if constant is not None:
            by_window = room.products[POINT_ONE].view(len(x), tiles, self.outputs)
            by_window.add_((constant / self._back[0, POINT_ONE]).unsqueeze(1))
        torch.bmm(room.back, room.by_tile, out=y.view(len(room.flat), TILE, self.outputs))

    def _block(self, tiles: int) -> int:
        entry = self._kernel.element_size()
        window = tiles * self.points * (self.inputs + self.outputs) * entry
        return max(BLOCK_BYTES // window, 1)

    def _room_for(self, count: int, tiles: int) -> _Room:
        if (count, tiles) not in self._rooms:
            if len(self._rooms) >= LARGEST_ROOMS:
                self._rooms.clear()
            self._rooms[count, tiles] = self._new_room(count, tiles)
        return self._rooms[count, tiles]

    def _new_room(self, count: int, tiles: int) -> _Room:
        new, points, every = self._kernel.new_empty, self.points, count * tiles
        # The padding before a window stays zero from use to use.
        padded = self._kernel.new_zeros((count, (tiles - 1) * TILE + points, self.inputs))
        gathered = new((count, tiles, points, self.inputs))
        wide, products = new((every, points, self.inputs)), new((points, every, self.outputs))
        window, row = padded.stride(0), padded.stride(1)
        return _Room(
            padded=padded,
            tiles=padded.as_strided(gathered.shape, (window, TILE * row, row, 1)),
            gathered=gathered,
            flat=gathered.view(every, points, self.inputs),
            forth=self._forth.expand(every, -1, -1),
            wide=wide,
            by_point=wide.transpose(0, 1),
            products=products,
            by_tile=products.transpose(0, 1),
            back=self._back.expand(every, -1, -1),
        )


class _Room(NamedTuple):
    """What so many windows are computed in, with every view of it: each would be a call.

    Args:
        padded: Windows between zeros, ``(n, positions, C)``.
        tiles: Overlapping tiles of them, ``(n, tiles, points, C)``; a view.
        gathered: A copy of these.
        flat: The copy as ``(n·tiles, points, C)``.
        forth: Bᵀ for each tile.
        wide: V by tile, ``(n·tiles, points, C)``.
        by_point: V by point.
        products: M by point, ``(points, n·tiles, O)``.
        by_tile: M by tile.
        back: Aᵀ for each tile.
    """

    padded: torch.Tensor
    tiles: torch.Tensor
    gathered: torch.Tensor
    flat: torch.Tensor
    forth: torch.Tensor
    wide: torch.Tensor
    by_point: torch.Tensor
    products: torch.Tensor
    by_tile: torch.Tensor
    back: torch.Tensor


@lru_cache
def matrices(
    taps: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return ``Aᵀ (4, points)``, ``G (points, taps)`` and ``Bᵀ (points, points)``, float64.

    For any filter g and inputs d: ``y = Aᵀ·((G·g) * (Bᵀ·d))`` with ``y_i = Σ_k d_{i+k}·g_k``.

    Raises:
        ValueError: Unless ``taps`` is one of :data:`TAPS`.
    """
    if taps not in TAPS:
        raise ValueError(f"{taps} taps; there are points for {TAPS}")
    points = _POINTS[: TILE + taps - 2]
    back = [[point**power for point in points] for power in range(TILE)]
    filters = [
        [point**power / _distance(point, points) for power in range(taps)] for point in points
    ]
    forth = [[*_polynomial([q for q in points if q != point]), Fraction(0)] for point in points]
    # The point at infinity: the highest coefficient.
    for power, row in enumerate(back):
        row.append(Fraction(power == TILE - 1))
    filters.append([Fraction(power == taps - 1) for power in range(taps)])
    forth.append(_polynomial(points))
    return _balanced(*(np.array(m, dtype=np.float64) for m in (back, filters, forth)))


def _balanced(
    back: NDArray[np.float64], filters: NDArray[np.float64], forth: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scale each point so that inputs and kernels keep their size; the product stays the same."""
    inputs, kernels = np.abs(forth).sum(axis=1), np.abs(filters).sum(axis=1)
    return (
        back * (inputs * kernels),
        filters / kernels[:, None],
        forth / inputs[:, None],
    )


def _distance(point: Fraction, points: tuple[Fraction, ...]) -> Fraction:
    found = Fraction(1)
    for other in points:
        found *= point - other if other != point else 1
    return found


def _polynomial(roots: list[Fraction] | tuple[Fraction, ...]) -> list[Fraction]:
    """Return the coefficients, lowest first, of the monic polynomial with these roots."""
    found = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *found], [*(-root * c for c in found), Fraction(0)]
        found = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return found
