"""The rank planner: which layer gets how many columns when a budget of bytes is all there is.

A column of layer l's core costs ``4·O_l`` bytes in float32 and adds the direction of the kernel's
next singular value. Its gain is that value's share of the kernel's energy, ``σ_i² / ‖K‖²``; a share
because layers differ in scale by orders of magnitude. The plan maximises the sum of the captured
shares within the budget.

Singular values descend, so a layer's gains do (they are concave in its rank), and within a layer
all columns cost the same. Taking the column with the most gain per byte, again and again, is then
optimal for the bytes that it has spent at every step: it solves the knapsack's linear relaxation
(Dantzig 1957). Where the next column no longer fits, cheaper ones fill the rest, and the plan falls
short of the optimum by less than the gain of the first column that did not fit. When all columns
cost the same it is the optimum.

The energy of a kernel is a proxy: it says what the base uses, not what a fleet will need.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.core_layer import adaptable_layers, single_thread
from fleet.adapt.frames import DEGENERATE_GAP, numerical_rank
from fleet.errors import InputError

__all__ = ["RankPlan", "costs_of", "plan_ranks", "spectra_of", "uniform_rank"]

BYTES_PER_ENTRY = 4


@dataclass(frozen=True)
class RankPlan:
    """Ranks by layer for a budget.

    Args:
        ranks: Columns of each layer's core; 0 where it carries none.
        bytes: What the cores take in float32.
        budget_bytes: What they may take.
        energy: Captured share of each kernel's energy, 0 to 1.
        refused: Layers that carry no core, with the reason.
    """

    ranks: Mapping[str, int]
    bytes: int
    budget_bytes: int
    energy: Mapping[str, float]
    refused: Mapping[str, str]

    @property
    def captured(self) -> float:
        """The sum of the captured shares: what the plan maximises."""
        return float(sum(self.energy.values()))


def spectra_of(folded: nn.Module) -> dict[str, NDArray[np.float64]]:
    """Return the singular values of each adaptable kernel as an ``O × I/g·Πk`` matrix, descending.

    A grouped kernel has one frame per group, all of one rank: its i-th value is the root of the sum
    of the groups' squared i-th values.

    Args:
        folded: Folded network.

    Returns:
        float64 ``(min(O/g, I/g·Πk),)`` by layer: the length is the largest rank of an ``svd``
        frame.
    """
    found = {}
    with single_thread():
        for name, layer in adaptable_layers(folded)[0].items():
            kernel = layer.get_parameter("weight").detach().double().numpy()
            groups = int(layer.groups)  # type: ignore[arg-type]
            rows = kernel.reshape(groups, kernel.shape[0] // groups, -1)
            found[name] = np.sqrt(np.square(np.linalg.svd(rows, compute_uv=False)).sum(axis=0))
    return found


def costs_of(folded: nn.Module) -> dict[str, int]:
    """Return the bytes of one column of each adaptable layer's core, ``4·O``."""
    layers = adaptable_layers(folded)[0]
    return {n: BYTES_PER_ENTRY * len(m.get_parameter("weight")) for n, m in layers.items()}


def plan_ranks(
    spectra: Mapping[str, NDArray[np.floating[Any]]],
    costs: Mapping[str, int],
    budget_bytes: int,
    *,
    smallest: int = 0,
) -> RankPlan:
    """Choose the rank of each layer for a budget of bytes.

    A cut never falls between equal singular values: such columns are taken together or not at all.

    Args:
        spectra: Singular values by layer, descending, see :func:`spectra_of`.
        costs: Bytes of one column by layer, see :func:`costs_of`.
        budget_bytes: What all cores together may take.
        smallest: Columns that every layer gets first; fewer where its kernel has no more.

    Raises:
        InputError: ``budget-too-small`` when the first columns do not fit, naming the least budget
            that is of use; ``rank-too-small`` for a negative ``smallest``.
    """
    if smallest < 0:
        raise InputError("rank-too-small", f"a layer gets 0 columns or more, not {smallest}", "")
    steps = {name: _steps(np.asarray(sigma, np.float64)) for name, sigma in spectra.items()}
    ranks = {name: _first(steps[name], smallest) for name in spectra}
    spent = sum(costs[name] * rank for name, rank in ranks.items())
    _check_budget(steps, costs, spent, budget_bytes)
    short = _fill(steps, costs, ranks, budget_bytes - spent)
    energy = {n: sum(gain for end, gain in steps[n] if end <= ranks[n]) for n in spectra}
    return RankPlan(
        MappingProxyType(ranks),
        sum(costs[name] * rank for name, rank in ranks.items()),
        budget_bytes,
        MappingProxyType({name: min(share, 1.0) for name, share in energy.items()}),
        MappingProxyType({n: _reason(steps[n], short.get(n)) for n, r in ranks.items() if not r}),
    )


def uniform_rank(
    costs: Mapping[str, int], budget_bytes: int, largest: Mapping[str, int] | None = None
) -> int:
    """Return the largest rank that all layers can share within a budget; 0 when none fits.

    Args:
        costs: Bytes of one column by layer.
        budget_bytes: What all cores together may take.
        largest: Where a layer can have no more columns than so many; it then stays there.

    >>> uniform_rank({"conv1": 256, "conv2": 512}, 2048)
    2
    """
    if largest is None:
        return budget_bytes // sum(costs.values()) if costs else 0
    rank = 0
    while rank < max((largest[name] for name in costs), default=0):
        if sum(cost * min(rank + 1, largest[name]) for name, cost in costs.items()) > budget_bytes:
            break
        rank += 1
    return rank


def _steps(sigma: NDArray[np.float64]) -> list[tuple[int, float]]:
    """Return ``(rank, gain)`` of each step up to which a layer can go, in order of rank.

    One column is one step, but for columns of equal singular values.
    """
    if not len(sigma) or sigma[0] <= 0:
        return []
    shares, tolerance = np.square(sigma) / np.square(sigma).sum(), DEGENERATE_GAP * sigma[0]
    most, start, steps = numerical_rank(sigma), 0, []
    for end in range(1, most + 1):
        if end == len(sigma) or sigma[end - 1] - sigma[end] > tolerance:
            steps.append((end, float(shares[start:end].sum())))
            start = end
    return steps


def _first(steps: list[tuple[int, float]], smallest: int) -> int:
    """Return the first rank of at least ``smallest`` that the layer can have, or its largest."""
    if not smallest or not steps:
        return 0
    return next((end for end, _ in steps if end >= smallest), steps[-1][0])


def _check_budget(
    steps: Mapping[str, list[tuple[int, float]]], costs: Mapping[str, int], spent: int, budget: int
) -> None:
    least = spent or min((costs[n] * own[0][0] for n, own in steps.items() if own), default=0)
    if not least:
        raise InputError("nothing-to-plan", "no layer has a kernel with any energy", "")
    if budget < least:
        what = "the columns that every layer is to get" if spent else "one column of any layer"
        raise InputError(
            "budget-too-small",
            f"{budget:,} bytes are too few for {what}",
            f"The least useful budget is {least:,} bytes.",
        )


def _fill(
    steps: Mapping[str, list[tuple[int, float]]],
    costs: Mapping[str, int],
    ranks: dict[str, int],
    left: int,
) -> dict[str, int]:
    """Spend what is left by gain per byte, in ``ranks``; return what the stopped layers lacked.

    Ties go to the layer that comes first in the mapping.
    """
    place = {name: number for number, name in enumerate(steps)}
    heap: list[tuple[float, int, str, int]] = []
    short: dict[str, int] = {}

    def offer(name: str) -> None:
        following = [(end, gain) for end, gain in steps[name] if end > ranks[name]]
        if following:
            end, gain = following[0]
            size = costs[name] * (end - ranks[name])
            heapq.heappush(heap, (-gain / size, place[name], name, end))

    for name in steps:
        offer(name)
    while heap:
        *_, name, end = heapq.heappop(heap)
        size = costs[name] * (end - ranks[name])
        if size > left:
            short[name] = left
            continue
        ranks[name], left = end, left - size
        offer(name)
    return short


def _reason(steps: list[tuple[int, float]], left: int | None) -> str:
    if not steps:
        return "its kernel is zero"
    end, gain = steps[0]
    column = "its first column" if end == 1 else f"its first {end} columns, of one singular value"
    return f"{column} would add {gain:.2f}; {left or 0:,} bytes were left for it"
