"""A head with more outputs, for classes that the base has never seen."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fleet.errors import ModelError
from fleet.models.registry import HEAD
from fleet.seeds import generator

__all__ = ["MARGIN", "grow_head"]

MARGIN = 1.0
"""By how much a new class's logit starts below a mixture of the old ones."""


def grow_head(network: nn.Module, classes: int, *, seed: int) -> nn.Module:
    """Copy a network and append outputs to its head.

    A new row is a random convex mixture of the old rows, and its bias the same mixture of the old
    biases less :data:`MARGIN`. For every input its logit is then below the largest old one (up to
    rounding of logits so large that it exceeds the margin): until it has learned, the network
    predicts as before, and a new class still has a gradient through its weights. Zero rows with a
    small bias would not do, as all old logits can fall below any constant. Mixtures differ from
    class to class, so that new classes are not twins. Old outputs can differ in the last bit, as a
    matrix product may sum in another order when it has more columns.

    Args:
        network: Ends in an ``nn.Linear`` called ``head``; is not changed.
        classes: Outputs wanted, at least the present number; the old classes keep their indices.
        seed: The run's seed; decides the mixtures.

    Returns:
        A copy, every parameter and buffer and the old rows of the head bit-equal. Its
        ``ModelConfig`` is the caller's to update. A head without bias gets no margin: new logits
        then only do not exceed the largest old one.

    Raises:
        ModelError: ``no-head`` when the network does not end in one, ``too-few-classes`` for fewer
            classes than it has.
    """
    grown = copy.deepcopy(network)
    head = getattr(grown, HEAD, None)
    if not isinstance(head, nn.Linear):
        raise ModelError("no-head", f"the network has no linear layer called {HEAD!r} to grow")
    old = head.out_features
    if classes < old:
        raise ModelError(
            "too-few-classes",
            f"a head with {old} classes can only grow, not shrink to {classes}",
            "Give at least the present number of classes.",
        )
    random = generator(seed, 0, "server", "head/grow")
    mixtures = torch.from_numpy(random.dirichlet([1.0] * old, size=classes - old))
    head.weight = _appended(head.weight, mixtures, 0.0)
    if head.bias is not None:
        head.bias = _appended(head.bias, mixtures, MARGIN)
    head.out_features = classes
    return grown


def _appended(old: torch.Tensor, mixtures: torch.Tensor, margin: float) -> nn.Parameter:
    rows = old.detach()
    # In float64, so that a mixture is rounded once.
    new = mixtures.to(rows.device) @ rows.to(torch.float64) - margin
    joined = torch.cat([rows, new.to(rows.dtype)])
    return nn.Parameter(joined, requires_grad=old.requires_grad)
