"""Merge: dense kernels = base kernels moved by a core state, in one definition on every machine.

    K_t = K0 + C_t · S            and where LoRA moves the suffix too: K0 + C_t · (S + ΔS_t)

always from the immutable base kernel ``K0``, never from a merged one; so going back to an earlier
release is a merge with an earlier state, and returns the same bits. The sum is a fixed-order loop
over the rank of separate multiply and add passes in float64, rounded once to the kernel's dtype;
a dense delta of the same kernel (``core+full``) is added to that, and rounded in its turn.

Laws (tests/fleet/adapt/test_merge.py): ``merge(K, a + b) - merge(K, a) == merge(K, b) - K`` up to
rounding, for cores and dense deltas; ``merge(K, 0)`` is K bit for bit; a zero core row leaves its
kernel row untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.frames import Frame
from fleet.adapt.state import CHANGE_SUFFIX, CORE_SUFFIX, CoreState
from fleet.errors import MismatchError

__all__ = ["check_change", "merge", "merge_kernel"]


def merge(
    parameters: Mapping[str, NDArray[Any]], frames: Mapping[str, Frame], state: CoreState
) -> dict[str, NDArray[Any]]:
    """Move the parameters of a folded network by a core state.

    Args:
        parameters: All parameters of the folded base by name, e.g. ``conv1.weight (O, I/g, *k)``.
        frames: Frame of each adapted layer, by layer name.
        state: Cores ``LAYER.core (O, r)``, changes of suffixes ``LAYER.suffix (r, I/groups, *k)``
            beside them, and dense deltas named like parameters.

    Returns:
        New dict with the same names, shapes and dtypes. Untouched parameters are the same objects.

    Raises:
        MismatchError: ``unknown-entry``, ``core-shape``, ``suffix-shape``, ``state-not-finite`` or
            ``merge-overflow``.
    """
    if not state.finite:
        raise MismatchError(
            "state-not-finite", "a core state with NaN or infinity cannot be merged", ""
        )
    merged = dict(parameters)
    for name, delta in state.arrays.items():
        layer, _, leaf = name.rpartition(".")
        if f".{leaf}" == CORE_SUFFIX and layer in frames:
            target, change = f"{layer}.weight", state.arrays.get(layer + CHANGE_SUFFIX)
            merged[target] = merge_kernel(parameters[target], frames[layer], delta, change)
        elif f".{leaf}" == CHANGE_SUFFIX and layer + CORE_SUFFIX in state.arrays:
            continue  # merged with its core
        elif name in parameters and parameters[name].shape == delta.shape:
            # Cores come before the kernels that they move: ``L.core`` sorts before ``L.weight``.
            merged[name] = _add_where_moved(merged[name], delta.astype(np.float64), delta != 0)
        else:
            raise MismatchError(
                "unknown-entry",
                f"the state's entry {name} {delta.shape} fits no layer of this base",
                "The state belongs to another base, method or rank.",
            )
    return merged


def merge_kernel(
    kernel: NDArray[Any], frame: Frame, core: NDArray[Any], change: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return ``K0 + C·S``, or ``K0 + C·(S + ΔS)``, for one layer.

    Args:
        kernel: ``K0 (O, I/g, *k)``, float32 or float64.
        frame: The layer's frame.
        core: ``C (O, r)`` with ``r`` at most the frame's rank (``svd`` frames are nested).
        change: ``ΔS (r, I/groups, *k)``, added to the suffix of every group; None for none.

    Returns:
        Kernel of the same shape and dtype.
    """
    if core.ndim != 2 or core.shape[0] != kernel.shape[0]:
        raise MismatchError(
            "core-shape", f"a core of a kernel {kernel.shape} is (outputs, rank), not {core.shape}"
        )
    suffix = frame.truncated(core.shape[1]).suffix(kernel)
    if change is not None:
        check_change(change.shape, (core.shape[1], *kernel.shape[1:]))
        suffix = suffix + change.astype(np.float64)
    cores = core.astype(np.float64).reshape(frame.groups, -1, core.shape[1])
    lift = (...,) + (None,) * (kernel.ndim - 1)
    delta = np.zeros((frame.groups, cores.shape[1], *kernel.shape[1:]))
    for column in range(core.shape[1]):
        delta = delta + cores[:, :, column][lift] * suffix[:, None, column]
    moved = (core != 0).any(axis=1).reshape(-1, *(1,) * (kernel.ndim - 1))
    return _add_where_moved(kernel, delta.reshape(kernel.shape), moved)


def check_change(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Refuse a change of a suffix that is not shaped as the suffix of one group.

    Raises:
        MismatchError: ``suffix-shape``.
    """
    if shape != wanted:
        raise MismatchError(
            "suffix-shape", f"the change of a suffix {wanted} is of its shape, not {shape}"
        )


def _add_where_moved(
    values: NDArray[Any], delta: NDArray[np.float64], moved: NDArray[np.bool_]
) -> NDArray[Any]:
    # Adding zero is not neutral for every bit pattern: -0.0 + 0.0 is +0.0.
    with np.errstate(over="ignore"):
        total = (values.astype(np.float64) + delta).astype(values.dtype)
    if not np.isfinite(total[np.broadcast_to(moved, total.shape)]).all():
        raise MismatchError(
            "merge-overflow",
            f"merging leaves the range of {values.dtype}: the state's entries are too large",
            "Go back to an earlier release.",
        )
    return np.where(moved, total, values)
