"""What compression loses of an update is kept with it, and added to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients.agent.answering.labelled import labelled
from clients.agent.answering.packing import unpack_residual
from clients.agent.learner import Learner, Residual
from fleet.adapt.base import Base
from fleet.errors import StorageError
from fleet.federate.compress import Encoding, compressed, decompressed, packed_bytes
from fleet.federate.releases import Release
from fleet.federate.wire import decode_plan
from tests.clients.agent.answering.devices import (
    NAME,
    Device,
    Turned,
    opened,
    plan_of,
    train_message,
)


def kept(device: Device, release: Release) -> Residual | None:
    plan = plan_of(release)
    content = device.store.residuals.get(f"{plan.base}/{plan.frame}/{plan.layout}")
    return None if content is None else unpack_residual(content)


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_two_packed_updates_and_the_last_residual_are_the_learners_own_updates(
    state: Path, turned: Turned, base: Base, releases: list[Release], how: Encoding
) -> None:
    asked = [train_message(releases[1], round=n, compression=how) for n in (1, 2)]
    sent = []
    for message in asked:  # a restart between them: what was lost is durable
        with opened(state, turned.world()) as device:
            sent.append(device.ask("train", message))
            windows, lost = labelled(device.store, base.record).windows, kept(device, releases[1])
    size = releases[1].state.layout.size
    learner = Learner(NAME, base, windows)
    true = [
        learner.answer_plan(train_message(releases[1], round=n)).array.astype(np.float64)
        for n in (1, 2)
    ]
    assert all(each.array.nbytes == packed_bytes(size, how) for each in sent)
    assert all(each.config["encoding"] == how for each in sent)
    decoded = [decompressed(each.array, size, how).astype(np.float64) for each in sent]
    assert lost is not None
    assert np.abs(lost).max() > 0
    np.testing.assert_allclose(sum(decoded) + lost, sum(true), atol=1e-6)
    # Without what the first one lost, the second would have been another.
    alone = compressed(true[1].astype(np.float32), None, how)[0]
    assert alone.tobytes() != sent[1].array.tobytes()


def test_the_same_plan_gets_the_same_bytes_and_leaves_the_residual(
    device: Device, releases: list[Release]
) -> None:
    message = train_message(releases[1], compression="int4")
    first = device.ask("train", message)
    lost = kept(device, releases[1])
    again = device.ask("train", message)
    assert again.array.dtype == np.uint8
    assert again.array.tobytes() == first.array.tobytes()
    assert lost is not None
    assert np.array_equal(kept(device, releases[1]), lost)  # type: ignore[arg-type]


def test_a_plan_without_compression_neither_reads_nor_moves_the_residual(
    device: Device, releases: list[Release]
) -> None:
    device.ask("train", train_message(releases[1], compression="int4"))
    lost = kept(device, releases[1])
    plain = device.ask("train", train_message(releases[1], round=2))
    assert plain.array.dtype == np.float32
    assert "compression" not in str(decode_plan(train_message(releases[1])).model_dump())
    assert np.array_equal(kept(device, releases[1]), lost)  # type: ignore[arg-type]


def test_an_update_that_cannot_be_kept_leaves_the_residual_before(
    device: Device, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    device.ask("train", train_message(releases[1], compression="int4"))
    lost = kept(device, releases[1])

    def full(*_: object) -> None:
        raise StorageError("disk-full", "no space left")

    monkeypatch.setattr(device.store.state, "put", full)  # the transaction's last statement
    with pytest.raises(StorageError):
        device.ask("train", train_message(releases[1], round=3, compression="int4"))
    assert np.array_equal(kept(device, releases[1]), lost)  # type: ignore[arg-type]
    assert device.store.outbox.get(plan_of(releases[1], round=3, compression="int4").id) is None
