"""The tape: a network as a flat list of operations, run forwards and backwards by hand.

A batch runs in slices of a few windows, one after the other, forwards and then backwards. Windows
do not know of each other (batch norm is folded), so the results are those of the whole batch; but
what is live at any time is one slice's activations beside the little that is kept of all slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fleet.adapt.lean.op import Backward, Forward, Kept, Op, batch_mixed

__all__ = ["INPUT", "Gradients", "Record", "Step", "Tape", "saved_bytes"]

# The slot of the network's input.
INPUT = 0


@dataclass(frozen=True)
class Step:
    """One operation: reads slots, writes its own.

    Args:
        name: The layer's name, or the node's where it is no layer.
        op: The operation.
        inputs: Slots read.
        output: Slot written; the steps' order is that of their outputs.
        reason: Why plain autograd runs it; empty for a lean operation.
    """

    name: str
    op: Op
    inputs: tuple[int, ...]
    output: int
    reason: str = ""


@dataclass
class _Held:
    """A tensor and the count of those who hold its memory."""

    tensor: torch.Tensor
    holders: list[int] = field(default_factory=lambda: [1])

    def shared(self, tensor: torch.Tensor) -> _Held:
        """Hold another view of the same memory."""
        self.holders[0] += 1
        return _Held(tensor, self.holders)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lives in this memory."""
        return (
            tensor.untyped_storage().data_ptr() == self.tensor.untyped_storage().data_ptr()
            and tensor.numel() > 0
        )

    @property
    def owned(self) -> bool:
        """Whether nobody else holds this memory, so that it may be overwritten."""
        return self.holders[0] == 1


class Gradients(dict[str, torch.Tensor]):
    """Gradients by entry name, summed over slices and over a layer's uses."""

    def collect(self, name: str, value: torch.Tensor) -> None:
        """Add to an entry's gradient."""
        if name in self:
            self[name].add_(value)
        else:
            self[name] = value


# What one slice keeps: by step, None where no backward pass will come by.
Record = list[Kept | None]


class _Turn(NamedTuple):
    """A step with what is known beforehand of its turn.

    Args:
        step: The step.
        keep: Whether a backward pass will visit it.
        wants: By input: whether its gradient will be asked for.
        last: By input: whether nobody reads it later.
        ends: Slots that are free afterwards.
    """

    step: Step
    keep: bool
    wants: tuple[bool, ...]
    last: tuple[bool, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Tape:
    """A network's operations in order.

    Args:
        steps: Operations; a step reads only slots that earlier ones wrote.
        output: Slot of the logits.
    """

    steps: tuple[Step, ...]
    output: int
    _schedules: dict[frozenset[int], list[_Turn]] = field(default_factory=dict, compare=False)

    @property
    def sliceable(self) -> bool:
        """Whether all windows are known to be independent."""
        return not any(step.reason for step in self.steps)

    def wanted(self, input_gradient: bool) -> frozenset[int]:
        """Return the slots that a gradient reaches on its way to something trained."""
        found = {INPUT} if input_gradient else set()
        for step in self.steps:
            if step.op.entries or found.intersection(step.inputs):
                found.add(step.output)
        return frozenset(found)

    def forward(
        self,
        x: torch.Tensor,
        size: int,
        wanted: frozenset[int] = frozenset(),
        noise: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, list[Record]]:
        """Run a batch.

        Args:
            x: Windows ``(batch, channels, ...)``; not changed.
            size: Windows per slice.
            wanted: Slots whose gradients will be asked for; operations behind others keep nothing.
            noise: Source of dropout masks; None turns dropout off.

        Returns:
            Logits ``(batch, classes)``, and what each slice keeps.
        """
        outputs, records = [], []
        for part in torch.split(x, max(size, 1)):
            y, record = self._forward_slice(part, wanted, noise)
            if len(y) != len(part):
                raise batch_mixed()
            outputs.append(y)
            records.append(record)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), records

    def backward(
        self, grad: torch.Tensor, size: int, records: list[Record], wanted: frozenset[int]
    ) -> tuple[Gradients, torch.Tensor | None]:
        """Run a batch backwards, freeing what was kept on the way.

        Args:
            grad: Gradient of the logits; not changed.
            size: Windows per slice, as in the forward pass.
            records: What each slice kept; empty afterwards.
            wanted: As in the forward pass.

        Returns:
            Gradients of the trained entries, and of the input where that is wanted.
        """
        gradients, inputs = Gradients(), []
        parts = torch.split(grad, max(size, 1))
        records.reverse()
        for part in parts:
            found = self._backward_slice(part, records.pop(), wanted, gradients.collect)
            if found is not None:
                inputs.append(found)
        return gradients, torch.cat(inputs) if inputs else None

    def _forward_slice(
        self, x: torch.Tensor, wanted: frozenset[int], noise: torch.Generator | None
    ) -> tuple[torch.Tensor, Record]:
        # The caller holds the input too, so no operation may overwrite it.
        slots: dict[int, _Held] = {INPUT: _Held(x, [2])}
        record: Record = []
        for step, keep, wants, last, ends in self._schedule(wanted):
            held = [slots[slot] for slot in step.inputs]
            owned = tuple(h.owned and end for h, end in zip(held, last, strict=True))
            y, kept = step.op.forward([h.tensor for h in held], Forward(owned, keep, wants, noise))
            record.append(kept if keep else None)
            output = next((h.shared(y) for h in held if h.holds(y)), None) or _Held(y)
            if keep and step.op.pins:
                for h in (*held, output):
                    h.holders[0] += 1
            for slot in ends:
                slots.pop(slot).holders[0] -= 1
            slots[step.output] = output
            del held, output, y
        return slots[self.output].tensor, record

    def _backward_slice(
        self,
        grad: torch.Tensor,
        record: Record,
        wanted: frozenset[int],
        collect: Callable[[str, torch.Tensor], None],
    ) -> torch.Tensor | None:
        # The caller holds the logits' gradient, and may need it unchanged.
        slots: dict[int, _Held] = {self.output: _Held(grad, [2])}
        for step, _, wants, _, _ in reversed(self._schedule(wanted)):
            kept = record.pop()
            held = slots.pop(step.output, None)
            if kept is None or held is None:
                continue
            run = Backward(held.owned, wants, collect)
            found = step.op.backward(held.tensor, kept, run)
            for slot, given in _results(step.inputs, found, held):
                slots[slot] = _sum(slots[slot], given) if slot in slots else given
            held.holders[0] -= 1
            del kept, held, found
        return slots[INPUT].tensor if INPUT in slots else None

    def _schedule(self, wanted: frozenset[int]) -> list[_Turn]:
        """Work out, once for each set of wanted slots, who is the last to read what."""
        if wanted not in self._schedules:
            left = Counter(slot for step in self.steps for slot in step.inputs)
            left[self.output] += 1
            turns: list[_Turn] = []
            for step in self.steps:
                left.subtract(step.inputs)
                last = tuple(left[slot] == 0 for slot in step.inputs)
                ends = tuple({s for s, end in zip(step.inputs, last, strict=True) if end})
                wants = tuple(slot in wanted for slot in step.inputs)
                turns.append(_Turn(step, step.output in wanted, wants, last, ends))
            self._schedules[wanted] = turns
        return self._schedules[wanted]


def saved_bytes(records: Sequence[Record]) -> int:
    """Return the bytes that all slices keep; what two operations keep counts once."""
    found: dict[object, int] = {}
    for record in records:
        for item in (item for kept in record if kept is not None for item in kept):
            memory = (
                (item.untyped_storage().data_ptr(), item.storage_offset())
                if isinstance(item, torch.Tensor)
                else id(item)
            )
            found[memory] = int(getattr(item, "nbytes", 0))
    return sum(found.values())


def _results(
    inputs: Sequence[int], found: Sequence[torch.Tensor | None], held: _Held
) -> Iterator[tuple[int, _Held]]:
    """Pair each input with its gradient, noting which live in one memory."""
    fresh: list[_Held] = [held]
    for slot, tensor in zip(inputs, found, strict=True):
        if tensor is None:
            continue
        before = next((h for h in fresh if h.holds(tensor)), None)
        given = _Held(tensor) if before is None else before.shared(tensor)
        fresh.append(given)
        yield slot, given


def _sum(first: _Held, second: _Held) -> _Held:
    """Add two gradients of one slot, in place where one of them is owned."""
    for own, other in ((first, second), (second, first)):
        if own.owned and own.tensor.shape == other.tensor.shape:
            own.tensor.add_(other.tensor)
            other.holders[0] -= 1
            return own
    total = first.tensor + second.tensor
    first.holders[0] -= 1
    second.holders[0] -= 1
    return _Held(total)
