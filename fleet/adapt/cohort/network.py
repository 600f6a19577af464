"""The cohort network: one forward and backward pass of many devices' steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fleet.adapt.cohort.ops import for_each
from fleet.adapt.cohort.stacks import Stacks
from fleet.adapt.frames import Frame
from fleet.adapt.lean.layers import Affine
from fleet.adapt.lean.module import LeanAttached, attach_lean
from fleet.adapt.lean.tape import Tape
from fleet.adapt.state import CoreState
from fleet.errors import MismatchError, ModelError

__all__ = ["SLICE_WINDOWS", "CohortNetwork", "attach_cohort", "cohort_of"]

# Windows per slice: twice those of a device, since here a call costs more than a cache miss; with
# two threads, each waits for the other's calls.
SLICE_WINDOWS = 128


class CohortNetwork:
    """A folded network with as many copies of what is trained as there are devices.

    Args:
        attached: The network of one device, at the start.
        tape: Its operations.
        devices: Devices that start.
    """

    def __init__(self, attached: LeanAttached, tape: Tape, devices: int) -> None:
        self._attached = attached
        self._stacks = Stacks(attached.parameters, devices)
        steps = tuple(replace(s, op=for_each(s.name, s.op, self._stacks)) for s in tape.steps)
        self._tape = Tape(steps, tape.output)
        self._wanted = self._tape.wanted(input_gradient=False)
        self._affine = {s.name: s.op.layer for s in tape.steps if isinstance(s.op, Affine)}
        # Where every device starts.
        self.start = attached.state()
        anything = next(attached.module.parameters())
        self.dtype, self.place = anything.dtype, anything.device

    @property
    def parameters(self) -> Mapping[str, torch.Tensor]:
        """What is trained by entry name, ``(devices, *shape)`` each."""
        return self._stacks.values

    def begin(self, state: CoreState) -> None:
        """Let every device start from ``state`` from the next :meth:`restart` on.

        Nothing else of the network depends on where devices start, so one serves a whole run.

        Raises:
            MismatchError: ``wrong-layout`` when the state names or shapes its entries otherwise.
        """
        self._check_layout(state)
        values = {}
        for name, array in state.arrays.items():
            value = torch.from_numpy(np.array(array)).to(self.place, self.dtype)
            origin = self._attached.origin.get(name)
            values[name] = value if origin is None else origin.to(value) + value
        self._stacks.begin(values)
        self.start = CoreState.of(self._moved(values))

    def restart(
        self,
        devices: int,
        ahead: Sequence[CoreState | None] = (),
        maps: Sequence[Mapping[str, tuple[torch.Tensor, torch.Tensor]]] = (),
    ) -> None:
        """Put ``devices`` devices at the start; :attr:`parameters` are new tensors afterwards.

        Args:
            devices: How many.
            ahead: How far each is from the start, of the start's layout; None for not at all.
            maps: What affine maps each has of its own, see :class:`~.work.DeviceWork`.

        Raises:
            MismatchError: ``wrong-layout`` as :meth:`begin`; ``wrong-maps`` when the network has no
                affine map at a place.
        """
        for each in ahead:
            self._check_layout(each)
        places = {name for own in maps for name in own}
        if not places <= self._affine.keys():
            unknown = ", ".join(sorted(places - self._affine.keys()))
            raise MismatchError("wrong-maps", f"the network has no affine map at {unknown}", "")
        self._stacks.restart(devices)
        for name in sorted(places):
            self._stacks.map_by(name, *self._own(name, maps))
        for name, stack in self.parameters.items():
            for device, own in enumerate(ahead):
                if own is not None:
                    stack[device].add_(torch.from_numpy(np.array(own.arrays[name])).to(stack))

    def add_pull(
        self, gradients: Mapping[str, torch.Tensor], strength: float | Mapping[str, torch.Tensor]
    ) -> None:
        """Add the gradient of ``Σ strength/2 · (θ - start)²`` to those of :meth:`gradients`.

        Args:
            gradients: Changed.
            strength: One for all, or ``(devices, *shape)`` of each of :attr:`parameters`.
        """
        for name, value in self.parameters.items():
            away = value - self._stacks.start[name]
            if isinstance(strength, Mapping):
                gradients[name].addcmul_(away, strength[name])
            else:
                gradients[name].add_(away, alpha=strength)

    def stacked(self, states: Sequence[CoreState | None]) -> dict[str, torch.Tensor]:
        """Return one state per device like :attr:`parameters`; zeros for None.

        Raises:
            MismatchError: ``wrong-layout`` as :meth:`begin`.
        """
        found = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        for device, state in enumerate(states):
            self._check_layout(state)
            for name, array in state.arrays.items() if state is not None else ():
                found[name][device] = torch.from_numpy(np.array(array))
        return found

    def gradients(
        self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return losses and gradients of the first ``running`` devices.

        A device's loss is the weighted sum of its windows' cross-entropies. Devices run in slices
        of about as many windows as lean's, each forwards and at once backwards.

        Args:
            x: Windows ``(running, b, channels, ...)`` of the network's dtype; not changed.
            y: Labels ``(running, b)`` int64.
            weights: Weight of each window ``(running, b)``; 0 for one that fills up a batch.

        Returns:
            Losses ``(running,)`` in nats, and a gradient shaped like each of :attr:`parameters`,
            zero for the devices that do not run.
        """
        losses = torch.zeros(len(x), dtype=self.dtype, device=x.device)
        found = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        with torch.no_grad():
            for first, last, size in self._slices(x):
                self._stacks.run(first, last)
                logits, records = self._tape.forward(
                    x[first:last].flatten(0, 1), size, self._wanted
                )
                part, grad = _cross_entropy(logits, y[first:last], weights[first:last])
                losses[first:last] = part
                own, _ = self._tape.backward(grad, size, records, self._wanted)
                for name, value in own.items():
                    into = found[name][first:last]
                    into.copy_(value.reshape(into.shape))
        return losses, found

    def losses(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return what :meth:`gradients` returns first, without going backwards."""
        losses = torch.zeros(len(x), dtype=self.dtype, device=x.device)
        with torch.no_grad():
            for first, last, size in self._slices(x):
                self._stacks.run(first, last)
                logits, _ = self._tape.forward(x[first:last].flatten(0, 1), size)
                labels = y[first:last]
                each = functional.cross_entropy(logits, labels.flatten(), reduction="none")
                losses[first:last] = (each.view(labels.shape) * weights[first:last]).sum(dim=1)
        return losses

    def states(self) -> list[CoreState]:
        """Return where each device is now, relative to the base."""
        arrays = self._moved(self.parameters)
        count = min((len(stack) for stack in arrays.values()), default=self._stacks.running)
        return [
            CoreState.of({name: stack[device] for name, stack in arrays.items()})
            for device in range(count)
        ]

    def _moved(self, values: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
        """Return values relative to the base, which cores start from at zero."""
        found = {}
        for name, value in values.items():
            origin = self._attached.origin.get(name)
            moved = value if origin is None else value - origin.to(value)
            found[name] = moved.cpu().numpy()
        return found

    def finite(self) -> torch.Tensor:
        """Return ``(devices,)`` booleans: whether a device's entries all are finite."""
        each = [stack.flatten(1).isfinite().all(dim=1) for stack in self.parameters.values()]
        if not each:
            return torch.ones(self._stacks.running, dtype=torch.bool)
        return torch.stack(each).all(dim=0)

    def _own(
        self, name: str, maps: Sequence[Mapping[str, tuple[torch.Tensor, torch.Tensor]]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scales and shifts of all devices at a place, ``(devices, channels)`` each."""
        layer = self._affine[name]
        usual = layer.scale.detach(), layer.shift.detach()
        each = [own.get(name, usual) for own in maps]
        scales, shifts = (
            torch.stack([one.to(usual[0]) for one in z]) for z in zip(*each, strict=True)
        )
        return scales, shifts

    def _check_layout(self, state: CoreState | None) -> None:
        if state is not None and state.layout != self.start.layout:
            raise MismatchError(
                "wrong-layout", "the state's entries are not those that this network trains", ""
            )

    def _slices(self, x: torch.Tensor) -> Iterator[tuple[int, int, int]]:
        """Yield first device, last device (excluded) and windows per slice of the tape."""
        devices, batch = x.shape[:2]
        windows = self._attached.lean.slice_of(x.flatten(0, 1))
        together = max(windows // max(batch, 1), 1)
        for first in range(0, devices, together):
            last = min(first + together, devices)
            # The gradient of a lone device may be summed over slices; several devices' may not.
            yield first, last, windows if last - first == 1 else (last - first) * batch


def attach_cohort(
    folded: nn.Module,
    frames: Mapping[str, Frame],
    state: CoreState,
    devices: int,
    *,
    dtype: torch.dtype,
    place: torch.device | str = "cpu",
    slice_windows: int | None = None,
) -> CohortNetwork:
    """Copy a folded network and make the entries of ``state`` trainable, once per device.

    Args:
        folded: Folded network; not changed.
        frames: Frame by layer name.
        state: Where every device starts.
        devices: Devices that start.
        dtype: Dtype to compute in; float64 serves as an oracle.
        place: Torch device to compute on.
        slice_windows: Windows that run together; None for :data:`SLICE_WINDOWS` on a CPU and all
            elsewhere.

    Raises:
        MismatchError: As :func:`fleet.adapt.attach.attach`.
        FrameError: Likewise.
        ModelError: ``cohort-dense-kernels`` when the state trains a convolution's kernel,
            ``cohort-no-tape`` when the network has calls without a lean form: nobody knows
            whether these keep windows, and so devices, apart.
    """
    if slice_windows is None and torch.device(place).type == "cpu":
        slice_windows = SLICE_WINDOWS
    attached = attach_lean(folded, frames, state, dtype=dtype, slice_windows=slice_windows)
    attached.module.to(place)
    return cohort_of(attached, devices)


def cohort_of(attached: LeanAttached, devices: int) -> CohortNetwork:
    """Return a network of many devices that all start where an attached one is.

    Args:
        attached: What one device trains; not changed.
        devices: Devices that start.

    Raises:
        ModelError: As :func:`attach_cohort`.
    """
    tape = attached.lean.tape
    if tape is None or not tape.sliceable:
        unknown = ", ".join(str(note) for note in attached.lean.explain() if not note.lean)
        raise ModelError(
            "cohort-no-tape",
            f"devices train together only where every call has a lean form; {unknown}",
            "Train these devices one by one.",
        )
    return CohortNetwork(attached, tape, devices)


def _cross_entropy(
    logits: torch.Tensor, y: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each device's weighted cross-entropy ``(devices,)`` and the gradient of the logits.

    Args:
        logits: ``(devices·b, classes)``.
        y: Labels ``(devices, b)``.
        weights: ``(devices, b)``.
    """
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        each = functional.cross_entropy(leaf, y.flatten(), reduction="none").view(y.shape)
        losses = (each * weights).sum(dim=1)
        # By hand, a softmax less its label rounds otherwise than what lean's learners see.
        (grad,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), grad
