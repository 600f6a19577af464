"""Core state: what devices train, as a vector space of named arrays.

A state holds one core ``(out, rank)`` per adapted layer (entries named ``LAYER.core``) and, where
a method enables them, dense deltas of other parameters (named as the folded network names them,
e.g. ``head.weight``). Everything downstream (updates, aggregation, releases, catch-up) works on
such states and does not care which method made them.

Laws (tests/fleet/adapt/test_state.py): addition is commutative, zero is neutral, ``a - a`` is zero,
``flat`` and ``from_flat`` are inverse, and adding commutes with flattening.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fleet.adapt.digest import digest_arrays, digest_json
from fleet.errors import MismatchError

__all__ = ["CHANGE_SUFFIX", "CORE_SUFFIX", "CoreState", "Layout"]

CORE_SUFFIX = ".core"
# Of the change of a frame's own suffix, which LoRA trains beside the core.
CHANGE_SUFFIX = ".suffix"


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a core state, in the order in which its flat array packs them.

    Args:
        entries: ``(name, shape)`` pairs, sorted by name.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """Make the layout of named shapes; names are sorted."""
        return cls(tuple((name, tuple(map(int, shapes[name]))) for name in sorted(shapes)))

    @cached_property
    def size(self) -> int:
        """Number of entries of the flat array."""
        return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in self.entries)

    @cached_property
    def digest(self) -> str:
        """Digest of names and shapes; travels with every flat array."""
        return digest_json([[name, list(shape)] for name, shape in self.entries])

    @property
    def names(self) -> tuple[str, ...]:
        """Entry names, sorted."""
        return tuple(name for name, _ in self.entries)

    @cached_property
    def pieces(self) -> tuple[tuple[str, slice, tuple[int, ...]], ...]:
        """Where the flat array holds each entry: name, slice and shape, in order."""
        found, start = [], 0
        for name, shape in self.entries:
            stop = start + int(np.prod(shape, dtype=np.int64))
            found.append((name, slice(start, stop), shape))
            start = stop
        return tuple(found)


@dataclass(frozen=True, eq=False)
class CoreState:
    """An immutable point of the vector space that :class:`Layout` describes.

    Args:
        layout: Names and shapes.
        arrays: One array per name, all of one float dtype, read-only.
    """

    layout: Layout
    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> CoreState:
        """Freeze named arrays; they are copied.

        Raises:
            MismatchError: ``state-dtype`` unless all have one float dtype.
        """
        kinds = {array.dtype for array in arrays.values()}
        if len(kinds) > 1 or any(kind.kind != "f" for kind in kinds):
            names = ", ".join(sorted(map(str, kinds)))
            raise MismatchError("state-dtype", f"a core state has one float dtype, not {names}")
        layout = Layout.of({name: array.shape for name, array in arrays.items()})
        frozen = {name: _frozen(np.array(arrays[name], order="C")) for name in layout.names}
        return cls(layout, MappingProxyType(frozen))

    @classmethod
    def zero(cls, layout: Layout, dtype: DTypeLike = np.float32) -> CoreState:
        """Return the origin: the adapted model is the base, bit for bit."""
        return cls.from_flat(layout, np.zeros(layout.size, dtype))

    @classmethod
    def from_flat(cls, layout: Layout, flat: NDArray[Any]) -> CoreState:
        """Unpack a flat array ``(layout.size,)``; the inverse of :meth:`flat`.

        Raises:
            MismatchError: ``layout-size`` when the number of entries differs.
        """
        if flat.shape != (layout.size,):
            raise MismatchError(
                "layout-size",
                f"a core state of this layout has {layout.size} entries, not {flat.shape}",
                "The two sides use different ranks, methods or bases; compare their plans.",
            )
        packed = _frozen(flat.copy())
        arrays = {name: packed[at].reshape(to) for name, at, to in layout.pieces}
        # Past the frozen fields: a server makes one of these for every update.
        state = cls.__new__(cls)
        state.__dict__.update(layout=layout, arrays=MappingProxyType(arrays), packed=packed)
        return state

    @cached_property
    def packed(self) -> NDArray[Any]:
        """What :meth:`flat` returns, read-only and made once."""
        return _frozen(self.flat())

    def flat(self) -> NDArray[Any]:
        """Pack all entries into one array ``(layout.size,)`` in layout order."""
        if "packed" in self.__dict__:
            own: NDArray[Any] = self.packed.copy()
            return own
        if not self.layout.entries:
            return np.zeros(0, np.float32)
        return np.concatenate([array.reshape(-1) for array in self.arrays.values()])

    @cached_property
    def digest(self) -> str:
        """Digest of names, shapes, dtypes and bits."""
        return digest_arrays(self.arrays)

    @cached_property
    def norm(self) -> float:
        """Euclidean norm over all entries, accumulated in float64."""
        total = 0.0
        for array in self.arrays.values():
            wide = array.astype(np.float64)
            wide *= wide
            total += float(wide.sum())
        return float(np.sqrt(total))

    @property
    def finite(self) -> bool:
        """Whether no entry is NaN or infinite."""
        return all(bool(np.isfinite(array).all()) for array in self.arrays.values())

    def astype(self, dtype: DTypeLike) -> CoreState:
        """Return the state in another float dtype."""
        return CoreState.from_flat(self.layout, self.flat().astype(dtype))

    def scale(self, factor: float) -> CoreState:
        """Return ``factor * self`` in this state's dtype."""
        return self._map(lambda a: (a * a.dtype.type(factor)).astype(a.dtype))

    def __add__(self, other: CoreState) -> CoreState:
        self._same_space(other)
        return CoreState.of({n: a + other.arrays[n] for n, a in self.arrays.items()})

    def __sub__(self, other: CoreState) -> CoreState:
        self._same_space(other)
        return CoreState.of({n: a - other.arrays[n] for n, a in self.arrays.items()})

    def _map(self, change: Any) -> CoreState:
        return CoreState.of({name: change(array) for name, array in self.arrays.items()})

    def _same_space(self, other: CoreState) -> None:
        if self.layout != other.layout:
            raise MismatchError(
                "layout-mismatch",
                "core states add only within one layout; "
                f"these differ in {_first_difference(self.layout, other.layout)}",
                "Use one base, method and rank for both.",
            )


def _first_difference(one: Layout, two: Layout) -> str:
    for first, second in zip(one.entries, two.entries, strict=False):
        if first != second:
            return f"{first[0]} {first[1]} and {second[0]} {second[1]}"
    return f"length ({len(one.entries)} and {len(two.entries)} entries)"


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
