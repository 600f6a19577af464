"""The wire: one flat packed array per direction, its identity in a flat config.

    train message   array: the release's cumulative core state, float32     config: plan, its id
    update          array: the core-state delta, float32, or uint8          config: update header
                    as the header's encoding says
    evaluate        array: a core state to judge, float32                   config: digests
    evaluation      no array                                                config: confusion counts
    release         array: a core state to serve, float32                   config: digests, and the
                    base's file for a device that said that it lacks the base

One array costs 6 objects on Flower's wire where 48 small ones cost 100. Decoding validates once and
refuses with a reason; nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import SchemaValidator

from fleet.adapt.digest import canonical_json
from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError
from fleet.federate.records import WIRE_FORMAT, Plan, UpdateHeader, problems_of

__all__ = [
    "BASE_BUNDLE",
    "BASE_MISSING",
    "LARGEST_BUNDLE_BYTES",
    "Payload",
    "Scalar",
    "Update",
    "decode_plan",
    "decode_state",
    "decode_update_header",
    "encode_plan",
    "encode_state",
    "encode_update",
    "with_base",
]

Scalar = str | int | float | bytes | bool
BASE_MISSING = "base-missing"
"""Code by which a device declines a release of a base that it can be sent."""
BASE_BUNDLE = "base_bundle"
"""Key of a message's config: the whole file of the base that its release is of, as bytes."""
LARGEST_BUNDLE_BYTES = 16 * 2**20
ITEM = np.dtype("<f4")
_HEADERS: SchemaValidator = UpdateHeader.__pydantic_validator__  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Payload:
    """What one message carries, whatever transports it.

    Args:
        array: Packed float32 array ``(size,)``, little-endian; of a compressed update uint8, see
            ``fleet.federate.compress``.
        config: Flat scalars.
    """

    array: NDArray[Any]
    config: Mapping[str, Scalar]


@dataclass(frozen=True, eq=False)
class Update:
    """What one device sends after a round.

    Args:
        header: Identity and counts.
        delta: Core state after training minus the release's.
    """

    header: UpdateHeader
    delta: CoreState


def encode_plan(plan: Plan, state: CoreState) -> Payload:
    """Pack a plan with the core state that training starts from."""
    record = canonical_json(plan.model_dump(mode="json")).decode()
    return Payload(_pack(state), {"format": WIRE_FORMAT, "plan": record})


def decode_plan(payload: Payload) -> Plan:
    """Read a plan.

    Raises:
        MismatchError: ``wire-format`` or ``plan-malformed``.
    """
    _check_format(payload.config)
    try:
        return Plan.model_validate_json(str(payload.config.get("plan", "")))
    except ValidationError as error:
        raise MismatchError("plan-malformed", problems_of(error)) from error


def encode_update(update: Update) -> Payload:
    """Pack an update whose header has no encoding; others are packed by ``compressed``."""
    return Payload(_pack(update.delta), update.header.config())


def decode_update_header(config: Mapping[str, Any]) -> UpdateHeader:
    """Read the identity of an update.

    Raises:
        MismatchError: ``wire-format`` or ``update-malformed``.
    """
    _check_format(config)
    try:
        # As ``model_validate`` does, without its many options.
        known = config if type(config) is dict else dict(config)
        header: UpdateHeader = _HEADERS.validate_python(known)
        return header
    except ValidationError as error:
        raise MismatchError("update-malformed", problems_of(error)) from error


def encode_state(state: CoreState, config: Mapping[str, Scalar]) -> Payload:
    """Pack a core state with its layout's digest and more identity."""
    identity: dict[str, Scalar] = {"format": WIRE_FORMAT, "layout": state.layout.digest}
    return Payload(_pack(state), {**config, **identity})


def decode_state(payload: Payload, layout: Layout) -> CoreState:
    """Unpack a core state of a known layout.

    Raises:
        MismatchError: ``wire-format``, ``wire-dtype`` or ``layout-size``.
    """
    _check_format(payload.config)
    if payload.array.dtype != np.float32:
        raise MismatchError("wire-dtype", f"a packed array is float32, not {payload.array.dtype}")
    flat = payload.array
    return CoreState.from_flat(layout, flat if flat.ndim == 1 else flat.reshape(-1))


def with_base(message: Payload, content: bytes) -> Payload:
    """Return a message about a release together with the file of its base.

    It needs no signature of its own: a release's covers the digest of its base.

    Raises:
        MismatchError: ``bundle-too-large`` beyond :data:`LARGEST_BUNDLE_BYTES`.
    """
    if len(content) > LARGEST_BUNDLE_BYTES:
        raise MismatchError(
            "bundle-too-large",
            f"a base of at most {LARGEST_BUNDLE_BYTES} bytes goes into a message, this one has "
            f"{len(content)}",
            "Install it on each device: fleet-device base add FILE",
        )
    return Payload(message.array, {**message.config, BASE_BUNDLE: content})


def _pack(state: CoreState) -> NDArray[np.float32]:
    flat = state.flat()
    return flat if flat.dtype == ITEM else flat.astype(ITEM)


def _check_format(config: Mapping[str, Any]) -> None:
    found = config.get("format")
    if found != WIRE_FORMAT:
        older = isinstance(found, int) and found < WIRE_FORMAT
        raise MismatchError(
            "wire-format",
            f"this side speaks wire format {WIRE_FORMAT}, the message has {found!r}",
            f"Upgrade the {'sender' if older else 'receiver'}.",
        )
