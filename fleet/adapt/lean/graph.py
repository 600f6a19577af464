"""Graph: from a network to its tape, by symbolic tracing.

A layer or call that a tape does not know becomes a node of plain autograd, alone; only where that
is impossible (several outputs, writing in place, arithmetic on shapes) does the whole network.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fleet.adapt.attach import CoreLayer
from fleet.adapt.fold import ChannelAffine
from fleet.adapt.lean.op import Op
from fleet.adapt.lean.ops import Clamp, Dropout, Permute, Reshape
from fleet.adapt.lean.pooling import MaxPool
from fleet.adapt.lean.recorded import Recorded
from fleet.adapt.lean.tape import INPUT, Step, Tape
from fleet.adapt.lean.translate import CALLS, Unknown, of_module
from fleet.adapt.tracing import trace

__all__ = ["Refused", "build"]

_SUMS = {operator.add, operator.iadd, torch.add, "add"}
_LISTS = {torch.cat, torch.concat}
_SEVERAL = {"chunk", "split", "tensor_split", "unbind", "sort", "topk"}


class Refused(Exception):
    """No tape of this network, not even with some nodes under plain autograd; says why."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CoreLayer | ChannelAffine) or super().is_leaf_module(
            m, module_qualified_name
        )


class _Batch:
    """Stands for the number of windows in a change of shape."""


def build(network: nn.Module, trained: Mapping[str, nn.Parameter]) -> Tape:
    """Write a network's tape.

    Args:
        network: Attached network in evaluation mode: one input, one output.
        trained: Its trainable parameters by entry name.

    Raises:
        Refused: When it has none.
    """
    try:
        nodes = list(trace(_Tracer(), network).nodes)
    except Exception as error:  # fx raises whatever the model's own forward raises on a proxy
        raise Refused(f"it cannot be followed symbolically: {error}") from error
    if sum(node.op == "placeholder" for node in nodes) != 1:
        raise Refused("it has several inputs")
    writer = _Writer(network, {id(p): name for name, p in trained.items()}, dict(trained))
    for node in nodes:
        writer.write(node)
    return Tape(tuple(writer.steps), writer.output)


@dataclass
class _Writer:
    network: nn.Module
    names: dict[int, str]
    trained: dict[str, nn.Parameter]
    slots: dict[fx.Node, int] = field(default_factory=dict)
    others: dict[fx.Node, object] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    aliases: set[fx.Node] = field(default_factory=set)
    output: int = INPUT

    def write(self, node: fx.Node) -> None:
        """Append a node's step."""
        if node.op == "placeholder":
            self.slots[node] = INPUT
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node) or node.args[0] not in self.slots:
                raise Refused("it returns something other than one tensor")
            self.output = self.slots[node.args[0]]
        elif node.op == "get_attr":
            self._constant(node)
        elif not self._is_shape(node):
            self._operation(node)

    def _constant(self, node: fx.Node) -> None:
        value = _attribute(self.network, str(node.target))
        if id(value) in self.names:
            raise Refused(f"{node.target} is trained, but read outside of a layer")
        self.others[node] = value

    def _is_shape(self, node: fx.Node) -> bool:
        """Note arithmetic on shapes: only the number of windows is understood."""
        if node.op == "call_method" and node.target == "size":
            self.others[node] = _Batch() if node.args[1:] == (0,) else "shape"
        elif node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
            self.others[node] = "shape"
        elif node.target is operator.getitem and self.others.get(node.args[0]) == "shape":  # type: ignore[arg-type]
            self.others[node] = _Batch() if node.args[1] == 0 else "width"
        else:
            return False
        return True

    def _operation(self, node: fx.Node) -> None:
        self._check(node)
        name = str(node.target) if node.op == "call_module" else node.name
        try:
            op, reason = self._known(node), ""
        except Unknown as unknown:
            op, reason = self._unknown(node), str(unknown)
        tensors = [n for n in _tensors(node) if n in self.slots]
        if op is None:
            self.aliases.add(node)
            self.slots[node] = self.slots[tensors[0]]
            return
        if isinstance(op, Reshape | Permute | Dropout):
            self.aliases.add(node)
        if isinstance(op, MaxPool) and self._fuses(tensors[0]):
            op = replace(op, relu=True)
            relu = self.steps.pop()
            self.steps.append(Step(name, op, relu.inputs, relu.output))
            self.slots[node] = relu.output
            return
        slot = len(self.steps) + 1
        self.steps.append(Step(name, op, tuple(self.slots[n] for n in tensors), slot, reason))
        self.slots[node] = slot

    def _fuses(self, source: fx.Node) -> bool:
        """Whether the step just written is a ReLU whose output goes into this pooling alone."""
        last = self.steps[-1] if self.steps else None
        return (
            last is not None
            and isinstance(last.op, Clamp)
            and last.op.is_relu
            and last.output == self.slots[source]
            and source not in self.aliases
            and len(source.users) == 1
        )

    def _known(self, node: fx.Node) -> Op | None:
        if node.op == "call_module":
            if len(node.all_input_nodes) != 1 or node.all_input_nodes[0] not in self.slots:
                raise Unknown("a layer called with anything but one tensor")
            return of_module(self._module(node), lambda p: self.names.get(id(p), ""))
        if node.target in ("view", "reshape"):
            return self._view(node)
        make = CALLS.get(node.target)
        if make is None:
            raise Unknown(f"no lean form of {_called(node)}")
        tensors = _tensors(node)
        if not tensors or any(n not in self.slots for n in tensors):
            raise Unknown(f"{_called(node)} with a constant")
        taken = 2 if node.target in _SUMS else 1
        listed = node.target in _LISTS and isinstance(node.args[0], tuple | list)
        if not listed and (len(tensors) != taken or len(node.args) < taken):
            raise Unknown(f"{_called(node)} with other arguments")
        try:
            return make(*node.args[taken:], **node.kwargs)
        except TypeError as error:
            raise Unknown(f"{_called(node)} with other arguments") from error

    def _view(self, node: fx.Node) -> Op:
        given: Any = node.args[1:]
        sizes = given[0] if given and isinstance(given[0], tuple | list) else given
        first = self.others.get(sizes[0]) if sizes and isinstance(sizes[0], fx.Node) else None
        if not isinstance(first, _Batch) or not all(isinstance(size, int) for size in sizes[1:]):
            raise Unknown("a view whose shape does not start with size(0)")
        rest = [int(size) for size in sizes[1:]]
        return Reshape(lambda x: x.reshape(len(x), *rest))

    def _unknown(self, node: fx.Node) -> Op:
        """Wrap a node for plain autograd."""
        name = str(node.target)
        if any(user.target is operator.getitem for user in node.users) or name in _SEVERAL:
            raise Refused(f"{_called(node)} returns several tensors")
        if any(
            n in self.others and not isinstance(self.others[n], torch.Tensor)
            for n in node.all_input_nodes
        ):
            raise Refused(f"{_called(node)} depends on shapes")
        inside = self._module(node).parameters() if node.op == "call_module" else ()
        mine = [self.names[id(p)] for p in inside if id(p) in self.names]
        return Recorded(partial(self._replay, node), {n: self.trained[n] for n in mine})

    def _replay(self, node: fx.Node, *tensors: torch.Tensor) -> Any:
        """Run one node as it stands in the network."""
        given = iter(tensors)
        values = {n: next(given) for n in _tensors(node) if n in self.slots}

        def value(n: fx.Node) -> Any:
            return values[n] if n in values else _attribute(self.network, str(n.target))

        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value)
        if node.op == "call_module":
            return self._module(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _check(self, node: fx.Node) -> None:
        """Refuse to write in place where somebody else reads the old values."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        module = self._module(node) if node.op == "call_module" else None
        inplace = (
            getattr(module, "inplace", False)
            or node.kwargs.get("inplace", False)
            or node.target is operator.iadd
            or (module is None and str(name).endswith("_") and not str(name).endswith("__"))
        )
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        while inplace and source is not None:
            if len(source.users) > 1:
                raise Refused(f"{_called(node)} writes in place what others read")
            source = source.all_input_nodes[0] if source in self.aliases else None

    def _module(self, node: fx.Node) -> nn.Module:
        return self.network.get_submodule(str(node.target))


def _tensors(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that a node reads, in order; one that it reads twice comes twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, dict(node.kwargs)), found.append)
    return found


def _called(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _attribute(network: nn.Module, name: str) -> Any:
    parent, _, leaf = name.rpartition(".")
    return getattr(network.get_submodule(parent), leaf)
