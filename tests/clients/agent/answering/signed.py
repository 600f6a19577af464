"""Messages with and without the proof of a key, and a device that takes only some."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cryptography")

from clients.agent.pinned import pin
from fleet.errors import FleetError
from fleet.federate.proof import with_plan_proof, with_proof
from fleet.federate.releases import Release
from fleet.federate.signing import make_key, public_keys, public_of, sign, sign_plan
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    Device,
    release_message,
    train_message,
)

KEY, OTHER = make_key(), make_key()
NOTHING = Payload(np.zeros(0, np.float32), {})
Make = Callable[[Release], Payload]
MESSAGES: dict[str, Make] = {
    "train": train_message,
    "evaluate": release_message,
    "query.release": release_message,
}
KINDS = pytest.mark.parametrize("kind", list(MESSAGES))


def trust(device: Device, state: Path, *keys: bytes) -> None:
    """Pin the public halves of private keys, as its owner does while the agent runs."""
    public = public_keys(b"".join(map(public_of, keys)))
    device.config[0] = pin(public, device.config[0], state)


def message(kind: str, release: Release, key: bytes | None = KEY) -> Payload:
    made = with_proof(MESSAGES[kind](release), release, sign(release, key) if key else "")
    return with_plan_proof(made, partial(sign_plan, key=key)) if key and kind == "train" else made


def with_config(payload: Payload, **values: Any) -> Payload:
    return Payload(payload.array, {**payload.config, **values})


def refused(device: Device, kind: str, payload: Payload) -> FleetError:
    """Ask and return why not; what is served and kept must be what it was."""
    before = device.serving.served, device.serving.folder.release_names()
    with pytest.raises(FleetError) as why:
        device.ask(kind, payload)
    assert (device.serving.served, device.serving.folder.release_names()) == before
    assert not device.store.outbox.waiting()
    return why.value


def flipped(text: str, bit: int = 77) -> str:
    content = bytearray.fromhex(text)
    content[bit // 8] ^= 1 << bit % 8
    return content.hex()
