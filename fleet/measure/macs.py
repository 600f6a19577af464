"""Multiply-accumulates of whatever runs, from the shapes of its operands.

Counted are convolutions, their gradients and matrix products, in the forward and in the backward
pass, hand-written backward passes included. A convolution costs its kernel's entries once per
window and output position (input position where it is transposed), zeros of the padding included;
groups are in the kernel's shape already. Its input gradient costs the same again, and so does its
weight gradient: every product of the forward has one in each. Published counters, PyTorch's own
``flop_counter`` among them, charge the weight gradient of a grouped convolution once per group too
often, a depthwise one as many times as it has channels; that is why this is not one of them.

Not counted is what multiplies entry by entry: activations, batch norm, masks, biases, sums, means,
pooling, losses, an outer product, the optimiser; nor are factorisations (``torch.linalg``), nor
what runs outside of PyTorch. An operator that multiplies matrices in a way of its own (attention
kernels, cuDNN's recurrent layers, sparse products) is refused rather than left out in silence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Semi-private, but the only place where every operator passes by with its operands, the ones that
# autograd and hand-written backward passes call included; hooks on modules see neither. PyTorch's
# documentation teaches it for exactly this. Nothing else in the library imports it.
from torch.utils._python_dispatch import TorchDispatchMode

from fleet.errors import ModelError

__all__ = ["MacCount", "count_macs", "step_macs"]

_CONVOLUTIONS = frozenset(
    {
        "convolution",
        "_convolution",
        "convolution_overrideable",
        "mkldnn_convolution",
        "cudnn_convolution",
        "cudnn_convolution_relu",
        "cudnn_convolution_add_relu",
        "cudnn_convolution_transpose",
        "miopen_convolution",
        "miopen_convolution_transpose",
    }
)
_GRADIENTS = frozenset({"convolution_backward", "convolution_backward_overrideable"})
# Where the left factor stands among the operands; the right one follows it.
_PRODUCTS: Mapping[str, int] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), 0),
    **dict.fromkeys(("addmm", "_addmm_activation", "addmv", "addbmm", "baddbmm"), 1),
}
# Further operators that multiply matrices inside, by their names.
_OPAQUE = re.compile(
    r"attention|rnn|convolution|conv\d|conv_(tbc|depthwise)|matmul|_mm|_sparse_addmm"
    r"|^_trilinear$|mkldnn_linear|linear_backward|cdist|_euclidean_dist"
)


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of a piece of work.

    Args:
        total: All of them.
        by_operator: The same by operator of ``torch.ops.aten``, whether it wrote in place or not;
            gradients of convolutions are ``convolution_backward.input`` and ``.weight``.
    """

    total: int
    by_operator: Mapping[str, int]


def count_macs(work: Callable[[], object]) -> int:
    """Return the multiply-accumulates of what ``work`` runs.

    It is run once. Operators of the calling thread and of autograd count, compiled code does not.

    Raises:
        ModelError: ``uncounted-operator`` when it runs an operator whose cost is not known.
    """
    return _count(work).total


def step_macs(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> MacCount:
    """Count forward, cross-entropy and backward pass of one batch.

    The gradients are those of the parameters that require one; of a module that trains nothing the
    forward pass alone counts. Parameters, their ``grad``, buffers, modes and PyTorch's random state
    are afterwards what they were. (A lean network in training mode draws its dropout masks from a
    source of its own, which moves on.)

    Args:
        module: Network, in the mode in which it is to be counted.
        x: Windows ``(batch, channels, ...)``; no gradient of theirs is computed.
        y: Labels ``(batch,)`` int64.

    Raises:
        ModelError: ``uncounted-operator`` when it runs an operator whose cost is not known.
    """
    trained = [p for p in module.parameters() if p.requires_grad]

    def step() -> None:
        loss = functional.cross_entropy(module(x.detach()), y)
        if trained:
            # Unlike ``backward`` this leaves every ``grad`` alone; the work is the same.
            torch.autograd.grad(loss, trained, allow_unused=True)

    # Batch norm in training mode moves its statistics.
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.enable_grad():
            return _count(step)
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _count(work: Callable[[], object]) -> MacCount:
    with _Counting() as counting:
        work()
    return MacCount(counting.found.total(), dict(counting.found))


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what passes by; an operator's own inner calls do not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, given = _base_name(func), kwargs or {}
        if name in _PRODUCTS:
            self.found[name] += _product(*args[_PRODUCTS[name] :][:2])
        elif name in _GRADIENTS:
            self.found.update(_gradients(_named(func, args, given)))
        elif name not in _CONVOLUTIONS:
            # In inference mode ``linear``, ``einsum`` and other compounds come by whole.
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
            if _OPAQUE.search(name):
                raise _uncounted(func.name())
        result = func(*args, **given)
        if name in _CONVOLUTIONS:
            self.found[name] += _convolution(name, _named(func, args, given), result)
        return result


def _base_name(func: Any) -> str:
    """Return an operator's name without library, overload (``.out``) and in-place mark."""
    full: str = func.name()
    return full.split("::")[-1].split(".")[0].rstrip("_")


def _named(func: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Name the operands: their order differs between the libraries' convolutions."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **given}


def _product(left: torch.Tensor, right: torch.Tensor) -> int:
    """Count ``(..., m, k)`` times ``(..., k, n)`` or ``(k,)``."""
    return left.numel() * (right.shape[-1] if right.dim() > 1 else 1)


def _convolution(name: str, operands: Mapping[str, Any], result: torch.Tensor) -> int:
    x = operands["input"] if "input" in operands else operands["self"]
    transposed = operands.get("transposed", name.endswith("_transpose"))
    return _kernel_uses(operands["weight"], x if transposed else result)


def _gradients(operands: Mapping[str, Any]) -> dict[str, int]:
    """Count what the mask asks for of input and weight; a bias only takes sums."""
    at = operands["input"] if operands["transposed"] else operands["grad_output"]
    cost = _kernel_uses(operands["weight"], at)
    wanted = zip(("input", "weight"), operands["output_mask"], strict=False)
    return {f"convolution_backward.{what}": cost for what, asked in wanted if asked}


def _kernel_uses(weight: torch.Tensor, positions: torch.Tensor) -> int:
    """Count every kernel entry once per window and position of ``(batch, channels, ...)``.

    A kernel is ``(outputs, inputs/groups, ...)``, or ``(inputs, outputs/groups, ...)`` transposed:
    either way each entry meets one channel on either side.
    """
    return weight.numel() * positions.shape[0] * math.prod(positions.shape[2:])


def _uncounted(name: str) -> ModelError:
    return ModelError(
        "uncounted-operator",
        f"the multiply-accumulates of {name} are not known",
        "Count a network of convolutions, linear layers and matrix products.",
    )
