"""The learner: trains and judges core states on one device's own windows.

The same code runs on a device and in every simulation. A message is answered from what it carries
and what the device holds; nothing between rounds lives here, so an answer depends on the plan
alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import Attached, single_thread
from fleet.adapt.base import Base
from fleet.adapt.lean.module import LeanAttached
from fleet.adapt.lean.plan import MicroBatchPlan, plan_micro_batches
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.adapt.state import CoreState, Layout
from fleet.adapt.train import (
    AfterStep,
    Guard,
    Progress,
    TrainingResult,
    batches,
    predict,
    train,
)
from fleet.errors import MismatchError
from fleet.federate.compress import compressed
from fleet.federate.records import GUARDS, WIRE_FORMAT, DeviceStatus, Plan, UpdateHeader
from fleet.federate.wire import Payload, Update, decode_plan, decode_state, encode_update
from fleet.measure.f1 import confusion
from fleet.peft.registry import find
from fleet.seeds import generator

__all__ = [
    "Learner",
    "MakeGuards",
    "Residual",
    "Windows",
    "Workbench",
    "judged",
    "metrics_of",
    "opened",
    "workbench",
]

Residual = NDArray[np.float32]
"""What compression has lost of a device's updates so far, ``(size,)``."""


MakeGuards = Callable[["Learner", Plan, CoreState], Sequence[Guard]]
"""Of a learner, its plan and the release's state: what holds this training back."""


@dataclass(frozen=True, eq=False)
class Windows:
    """A device's labelled windows, normalised as its base asks.

    Args:
        train_x: ``(n, channels, window)`` float32.
        train_y: ``(n,)`` int64.
        test_x: ``(m, channels, window)`` float32.
        test_y: ``(m,)`` int64.
    """

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


class Workbench:
    """What all learners of one base in one process share: the folded network and the last merge.

    Args:
        base: The base.
        network: A device's own version of its folded network, see ``fleet.continual.calibration``;
            None for the base's.
        own: Places of the affine maps that make it the device's own.
    """

    def __init__(
        self, base: Base, network: nn.Module | None = None, own: Iterable[str] = ()
    ) -> None:
        self.base = base
        self._own = tuple(own)
        self.network = folded_network(base) if network is None else network
        self.parameters = parameters_of(self.network)
        self._served: tuple[str, nn.Module] = ("", self.network)
        self._planned: dict[tuple[object, ...], MicroBatchPlan] = {}

    def layout(self, method: str) -> Layout:
        """Return the layout of what ``method`` trains."""
        return find(method).layout(self.network, self.base.frames)

    @property
    def maps(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Scale and shift ``(channels,)`` of the device's own maps, by place."""
        found = {}
        for place in self._own:
            layer = self.network.get_submodule(place)
            scale, shift = layer.get_parameter("scale"), layer.get_parameter("shift")
            found[place] = scale.detach(), shift.detach()
        return found

    def attach(self, method: str, state: CoreState, dtype: torch.dtype) -> Attached:
        """Return the network with ``state`` trainable, as ``method`` trains it."""
        return find(method).attach(self.network, self.base.frames, state, dtype=dtype)

    def memory_plan(
        self, method: str, batch: int, window: torch.Tensor, budget_bytes: int
    ) -> MicroBatchPlan | None:
        """Plan how a batch fits a memory budget, once; None for methods that cannot keep to one.

        Raises:
            InputError: ``memory-budget-too-small``.
        """
        key = (method, batch, budget_bytes, window.dtype)
        if key not in self._planned:
            zero = CoreState.zero(self.layout(method))
            attached = self.attach(method, zero, window.dtype)
            if not isinstance(attached, LeanAttached):
                return None
            self._planned[key] = plan_micro_batches(attached.lean, window, batch, budget_bytes)
        return self._planned[key]

    def served(self, state: CoreState) -> nn.Module:
        """Return the dense network that serves ``state``: canonically merged kernels."""
        digest, network = self._served
        if digest != state.digest:
            merged = merge(self.parameters, self.base.frames, state)
            network = with_parameters(copy.deepcopy(self.network), merged)
            self._served = (state.digest, network)
        return network


@lru_cache(maxsize=2)
def workbench(base: Base) -> Workbench:
    """Return the workbench of a base, made once per process (bases compare by identity)."""
    return Workbench(base)


class Learner:
    """One device's learner.

    Args:
        device: Name of the device.
        base: The base that it holds.
        windows: Its labelled windows.
        reason: Why it cannot take part; empty when it can.
        dtype: Dtype to train in; float64 serves as an oracle.
        memory_budget_bytes: What a training step may hold beyond parameters and optimiser state;
            0 for no limit. Methods that train whole kernels do not keep to it.
        bench: What it computes with; None for what all learners of the base share.
        guards: Makes what holds its training back, see ``fleet.continual.guards``; None for
            nothing.
    """

    def __init__(
        self,
        device: str,
        base: Base,
        windows: Windows,
        *,
        reason: str = "",
        dtype: torch.dtype = torch.float32,
        memory_budget_bytes: int = 0,
        bench: Workbench | None = None,
        guards: MakeGuards | None = None,
    ) -> None:
        self.device = device
        self.bench = workbench(base) if bench is None else bench
        self.guards = guards
        self.windows = windows
        self.reason = reason
        self.dtype = dtype
        self.memory_budget_bytes = memory_budget_bytes

    def status(self) -> DeviceStatus:
        """Say who the device is and whether it can take part."""
        return DeviceStatus(
            device=self.device,
            train_windows=len(self.windows.train_y),
            test_windows=len(self.windows.test_y),
            reason=self.reason,
        )

    def answer_plan(self, message: Payload) -> Payload:
        """Train as a plan asks and return the packed update; what compression loses is lost.

        Raises:
            MismatchError: When base, frames, layout or release are not those of the plan, or it
                asks for guards that nobody makes here.
        """
        return self.answer_with(message, lambda plan: None)[0]

    def answer_with(
        self, message: Payload, residual: Callable[[Plan], Residual | None]
    ) -> tuple[Payload, Residual | None]:
        """Do what :meth:`answer_plan` does for a device that keeps what compression loses.

        Args:
            message: The plan.
            residual: Returns what the device kept for a plan.

        Returns:
            The update, and what to keep now; None for a plan without compression.

        Raises:
            MismatchError: As :meth:`answer_plan`.
        """
        plan, state = opened(message, self.bench)
        self.check_guards(plan)
        self.check_windows()
        delta, result = self.train(plan, state)
        return self.encode_with(plan, delta, result, residual(plan))

    def train(
        self,
        plan: Plan,
        state: CoreState,
        *,
        resume: Progress | None = None,
        after_step: AfterStep | None = None,
    ) -> tuple[CoreState, TrainingResult]:
        """Train from ``state``; return the core-state delta and what training says of itself.

        ``resume`` is where a training on the same plan, state and windows was stopped; it and
        ``after_step`` are those of :func:`fleet.adapt.train.train`, and so are the errors.
        """
        with single_thread():
            attached = self.bench.attach(plan.method, state, self.dtype)
            x = torch.from_numpy(self.windows.train_x).to(self.dtype)
            cut = self.memory_plan(plan.method, plan.batch)
            before = attached.state()
            result = train(
                attached,
                x,
                torch.from_numpy(self.windows.train_y),
                self.order(plan),
                optimiser=plan.optimiser,
                learning_rate=plan.learning_rate,
                momentum=plan.momentum,
                micro_batch=cut.windows if cut else None,
                guards=() if self.guards is None else self.guards(self, plan, state),
                resume=resume,
                after_step=after_step,
            )
            return attached.state() - before, result

    def order(self, plan: Plan) -> Iterator[NDArray[np.int64]]:
        """Yield which windows each step of a plan takes."""
        whole = batches(
            len(self.windows.train_y),
            batch=plan.batch,
            epochs=plan.epochs,
            generator=generator(plan.seed, plan.round, self.device, "batches"),
        )
        return islice(whole, plan.max_steps or None)

    def memory_plan(self, method: str, batch: int) -> MicroBatchPlan | None:
        """Return how this device cuts a batch; None without a budget or for a method beyond one.

        Raises:
            InputError: ``memory-budget-too-small``.
        """
        if not self.memory_budget_bytes or not len(self.windows.train_y):
            return None
        window = torch.from_numpy(self.windows.train_x[0]).to(self.dtype)
        with single_thread():
            return self.bench.memory_plan(method, batch, window, self.memory_budget_bytes)

    def answer_evaluation(self, message: Payload) -> Mapping[str, int | list[int]]:
        """Judge a core state on the device's test windows.

        Returns:
            ``num-examples`` and ``confusion`` (row-major counts by true and predicted class).
        """
        return metrics_of(self.judge(message))

    def judge(self, message: Payload) -> NDArray[np.int64]:
        """Return the confusion counts ``(classes, classes)`` that a message asks for."""
        return self.evaluate(judged(message, self.bench))

    def evaluate(self, state: CoreState) -> NDArray[np.int64]:
        """Return confusion counts ``(classes, classes)`` of the merged network on the tests."""
        with single_thread():
            network = self.bench.served(state)
            predicted = predict(network, torch.from_numpy(self.windows.test_x))
        classes = len(self.bench.base.record.labels)
        return confusion(self.windows.test_y, predicted, classes)

    def check_windows(self) -> None:
        """Refuse to train on nothing.

        Raises:
            MismatchError: ``no-windows``.
        """
        if not len(self.windows.train_y):
            raise MismatchError(
                "no-windows", f"{self.device} has no labelled windows to train on", ""
            )

    def check_guards(self, plan: Plan) -> None:
        """Refuse a plan that asks for guards where there is nothing to make them with.

        Raises:
            MismatchError: ``guards-unsupported``.
        """
        asked = [name for name in GUARDS if getattr(plan, name)]
        if asked and self.guards is None:
            raise MismatchError(
                "guards-unsupported",
                f"a plan asks for {', '.join(asked)}, and nothing here makes guards of a plan",
                "Real agents can do it; simulations take guards from a continual strategy.",
            )

    def encode(self, plan: Plan, delta: CoreState, result: TrainingResult) -> Payload:
        """Pack what this device found in answer to a plan."""
        return self.encode_with(plan, delta, result, None)[0]

    def encode_with(
        self, plan: Plan, delta: CoreState, result: TrainingResult, residual: Residual | None
    ) -> tuple[Payload, Residual | None]:
        """Pack what this device found together with what compression lost before; pure.

        Args:
            plan: What is answered.
            delta: What training moved.
            result: What training says of itself.
            residual: What was lost before, float32 ``(size,)``; None for nothing.

        Returns:
            The update, and what is lost now; None without compression.

        Raises:
            MismatchError: ``not-finite`` when a compressed update would hold NaN or infinity.
        """
        header = UpdateHeader(
            format=WIRE_FORMAT,
            plan=plan.id,
            device=self.device,
            base=plan.base,
            frame=plan.frame,
            layout=plan.layout,
            examples=len(self.windows.train_y),
            steps=result.steps,
            loss=result.loss,
            encoding=plan.compression,
        )
        if plan.compression == "none":
            return encode_update(Update(header, delta)), None
        flat = delta.flat().astype(np.float32, copy=False)
        packed, lost = compressed(flat, residual, plan.compression)
        return Payload(packed, header.config()), lost


def opened(message: Payload, bench: Workbench) -> tuple[Plan, CoreState]:
    """Read a plan and the state that training starts from.

    Raises:
        MismatchError: When base, frames, layout or release are not those of the plan.
    """
    plan = decode_plan(message)
    _match("base", plan.base, bench.base.digest)
    _match("frame", plan.frame, bench.base.frame_digest)
    layout = bench.layout(plan.method)
    _match("layout", plan.layout, layout.digest)
    state = decode_state(message, layout)
    _match("state", plan.state, state.digest)
    return plan, state


def judged(message: Payload, bench: Workbench) -> CoreState:
    """Read the state that an evaluation is about.

    Raises:
        MismatchError: When it is not for this base and layout.
    """
    config = message.config
    _match("base", str(config.get("base")), bench.base.digest)
    layout = bench.layout(str(config.get("method")))
    _match("layout", str(config.get("layout")), layout.digest)
    return decode_state(message, layout)


def metrics_of(counts: NDArray[np.int64]) -> dict[str, int | list[int]]:
    """Return what an evaluation sends of confusion counts ``(classes, classes)``."""
    return {"num-examples": int(counts.sum()), "confusion": counts.ravel().tolist()}


def _match(what: str, wanted: str, own: str) -> None:
    if wanted != own:
        raise MismatchError(
            f"wrong-{what}",
            f"the message is for {what} {wanted[:12]}…, this device has {own[:12]}…",
            "Give the device the base that the fleet uses.",
        )
