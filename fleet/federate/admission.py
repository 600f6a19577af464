"""Admission: an update is checked against its plan before it may touch a sum.

Flower's own strategies trust what arrives: one NaN poisons the model, one extra key or wrong shape
ends the run. Here a bad update is refused with a reason code, and the round goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError
from fleet.federate.aggregate import LARGEST_ENTRY, rounded
from fleet.federate.compress import decompressed
from fleet.federate.records import Plan, UpdateHeader
from fleet.federate.wire import Payload, decode_state, decode_update_header

__all__ = ["Admitted", "Bounds", "Reason", "Refused", "admit"]


class Reason(str, Enum):
    """Why an update was refused or a device has none; stable codes for records and metrics."""

    malformed = "malformed"
    wrong_plan = "wrong-plan"
    wrong_device = "wrong-device"
    wrong_base = "wrong-base"
    wrong_frame = "wrong-frame"
    wrong_layout = "wrong-layout"
    wrong_dtype = "wrong-dtype"
    wrong_shape = "wrong-shape"
    wrong_encoding = "wrong-encoding"
    not_finite = "not-finite"
    entry_too_large = "entry-too-large"
    over_norm = "over-norm"
    implausible_examples = "implausible-examples"
    duplicate = "duplicate"
    late = "late"
    unselected = "unselected"
    declined = "declined"
    failed = "failed"
    no_reply = "no-reply"


_PACKED = {"packed-dtype": Reason.wrong_dtype, "packed-size": Reason.wrong_shape}


@dataclass(frozen=True)
class Bounds:
    """What a plausible update looks like.

    Args:
        largest_examples: Most windows that a device can claim.
        largest_norm: Largest Euclidean norm of a delta; None admits any.
    """

    largest_examples: int = 1_000_000
    largest_norm: float | None = 1000.0


@dataclass(frozen=True, eq=False)
class Admitted:
    """An update that may be added.

    Args:
        header: As sent.
        entries: Delta as sent, or decoded from it, float32 ``(size,)``, read-only; within the
            bounds of the exact sum.
        weight: Examples, capped by the plan.
        norm: Euclidean norm of that delta.
        digest: Its digest.
    """

    header: UpdateHeader
    entries: NDArray[np.float32]
    weight: int
    norm: float
    digest: str

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Delta quantised to 2⁻³², int64 ``(size,)``."""
        return rounded(self.entries)


@dataclass(frozen=True)
class Refused:
    """An update that is not added, and why."""

    reason: Reason
    detail: str


def admit(
    payload: Payload, plan: Plan, layout: Layout, device: str, bounds: Bounds
) -> Admitted | Refused:
    """Judge one update.

    Args:
        payload: What the device sent.
        plan: What it was asked to do.
        layout: Layout of what is trained.
        device: Name of the device that the message came from.
        bounds: Limits of plausibility.

    Returns:
        The quantised update, or the refusal; never raises for what a device sent.
    """
    try:
        header = decode_update_header(payload.config)
    except MismatchError as error:
        return Refused(Reason.malformed, error.message)
    for reason, got, wanted in (
        (Reason.wrong_plan, header.plan, plan.id),
        (Reason.wrong_device, header.device, device),
        (Reason.wrong_base, header.base, plan.base),
        (Reason.wrong_frame, header.frame, plan.frame),
        (Reason.wrong_layout, header.layout, layout.digest),
        (Reason.wrong_encoding, header.encoding, plan.compression),
    ):
        if got != wanted:
            return Refused(reason, f"sent {got[:16]}, the plan has {wanted[:16]}")
    if not 1 <= header.examples <= bounds.largest_examples:
        return Refused(
            Reason.implausible_examples,
            f"{header.examples} windows; 1 to {bounds.largest_examples} are plausible",
        )
    if header.encoding != "none":
        try:
            flat = decompressed(payload.array, layout.size, header.encoding)
        except MismatchError as error:
            return Refused(_PACKED.get(error.code, Reason.malformed), error.message)
        payload = replace(payload, array=flat)
    return _admit_array(payload, plan, layout, header, bounds)


def _admit_array(
    payload: Payload, plan: Plan, layout: Layout, header: UpdateHeader, bounds: Bounds
) -> Admitted | Refused:
    if payload.array.dtype != np.float32:
        return Refused(Reason.wrong_dtype, f"{payload.array.dtype}; the wire carries float32")
    if payload.array.shape != (layout.size,):
        return Refused(
            Reason.wrong_shape, f"{payload.array.shape}; the layout has ({layout.size},)"
        )
    # Of an array with a NaN the largest is NaN, so that one pass tells both.
    largest = float(np.max(np.abs(payload.array), initial=0.0))
    if not np.isfinite(largest):
        return Refused(Reason.not_finite, "the delta holds NaN or infinity")
    if largest > LARGEST_ENTRY:
        return Refused(Reason.entry_too_large, f"{largest:.3g} exceeds {LARGEST_ENTRY:g}")
    delta: CoreState = decode_state(payload, layout)
    if bounds.largest_norm is not None and delta.norm > bounds.largest_norm:
        return Refused(Reason.over_norm, f"norm {delta.norm:.3g} exceeds {bounds.largest_norm:g}")
    weight = min(header.examples, plan.weight_cap)
    return Admitted(header, delta.packed, weight, delta.norm, delta.digest)
