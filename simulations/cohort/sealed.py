"""Records that nobody can change, shared by all messages that carry the same."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from types import MappingProxyType

from flwr.app import RecordDict

from fleet.errors import MismatchError
from fleet.federate.wire import Payload
from server.messages import payload_of
from simulations.cohort.scale import content_signature

__all__ = ["Sealed", "seal"]


@dataclass(frozen=True, eq=False)
class Sealed:
    """What a message carries.

    Args:
        payload: A read-only array over bytes that Flower holds, and a config in a proxy.
        signature: See :func:`~simulations.cohort.scale.content_signature`.
    """

    payload: Payload
    signature: Hashable


def seal(content: RecordDict) -> tuple[Hashable, Sealed] | None:
    """Read records into what cannot be changed; None when they are no payload.

    Returns:
        A key that is equal for equal records, and the records.
    """
    signature = content_signature(content)
    try:
        payload = payload_of(content)
    except MismatchError:
        return None
    # Only a packed array is a view of Flower's bytes; of an empty one nothing can be changed.
    if signature is None or (payload.array.size and payload.array.flags.writeable):
        return None
    # One and True are equal, and yet not the same config.
    config = tuple((name, type(value), value) for name, value in payload.config.items())
    frozen = Payload(payload.array, MappingProxyType(dict(payload.config)))
    return (signature, payload.array.tobytes(), config), Sealed(frozen, signature)
