"""What a hostile device may answer to the standing service: refused, counted, reasoned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message
from numpy.typing import NDArray

from clients.bridge import update_content
from fleet.federate.admission import Reason
from fleet.federate.wire import Payload, decode_plan
from server.messages import payload_of
from server.metrics.snapshot import read
from tests.server.standing.standing import Answer, Fleet, update

FORGED = "0" * 64
Change = Callable[[NDArray[np.float32]], NDArray[Any]]


def lying(name: str, array: Change = lambda flat: flat, **config: Any) -> Answer:
    """Return a device that changes the array, or values of the header, of an honest update."""

    def answer(message: Message, context: Context) -> Message:
        payload = payload_of(update(message, name).content)
        flat = array(payload.array.copy())
        return Message(
            update_content(Payload(flat, {**payload.config, **config})), reply_to=message
        )

    return answer


def with_more(name: str) -> Answer:
    """Return a device that sends one array more than there is."""

    def answer(message: Message, context: Context) -> Message:
        reply = update(message, name)
        reply.content["more"] = ArrayRecord([np.zeros(3, np.float32)])
        return reply

    return answer


def spoiled(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    flat[0] = np.nan
    return flat


# An entry of 8 is the largest there is, so a norm beyond 1,000 needs more entries than a core has.
LIES: list[tuple[str, Reason, Callable[[str], Answer]]] = [
    ("NaN", Reason.not_finite, lambda name: lying(name, spoiled)),
    ("a huge norm", Reason.entry_too_large, lambda name: lying(name, lambda a: a + np.float32(9))),
    ("another frame", Reason.wrong_frame, lambda name: lying(name, frame=FORGED)),
    ("another shape", Reason.wrong_shape, lambda name: lying(name, lambda a: a[:-1])),
    ("one more array", Reason.malformed, with_more),
    ("a forged base", Reason.wrong_base, lambda name: lying(name, base=FORGED)),
    ("a forged layout", Reason.wrong_layout, lambda name: lying(name, layout=FORGED)),
    ("a stale plan", Reason.wrong_plan, lambda name: lying(name, plan=FORGED[:16])),
    ("another device's name", Reason.wrong_device, lambda name: lying(name, device="person-99")),
    ("10^12 windows", Reason.implausible_examples, lambda name: lying(name, examples=10**12)),
    (
        "a hundred megabytes",
        Reason.wrong_shape,
        lambda name: lying(name, lambda a: np.zeros(25 * 10**6, np.float32)),
    ),
]


def refusals(fleet: Fleet, number: int) -> dict[str, Reason]:
    return {each.device: each.reason for each in fleet.registry.rounds.refusals(number)}


@pytest.mark.parametrize(("reason", "lie"), [each[1:] for each in LIES], ids=[x[0] for x in LIES])
def test_a_lie_is_refused_counted_and_reasoned_and_the_round_goes_on(
    quick: Fleet, reason: Reason, lie: Callable[[str], Answer]
) -> None:
    liar, *others = quick.devices.names
    quick.devices.answers[liar, "train"] = lie(liar)
    quick.policy(rounds=1, quorum=2)
    quick.released(1)
    assert refusals(quick, 1) == {liar: reason}
    assert {each.device for each in quick.registry.rounds.updates(1)} == set(others)
    (said,) = quick.events("update.refused")
    assert (said["device"], said["reason"]) == (liar, reason.value)
    assert said["detail"]
    assert dict(read(quick.registry).tally.refused) == {reason.value: 1}
    assert quick.registry.replay(1).same


def test_the_bytes_of_an_earlier_update_under_a_new_message_are_refused(quick: Fleet) -> None:
    liar, *others = quick.devices.names
    sent: list[Payload] = []

    def replaying(message: Message, context: Context) -> Message:
        if not sent:
            sent.append(payload_of(update(message, liar).content))
        return Message(update_content(sent[0]), reply_to=message)

    quick.devices.answers[liar, "train"] = replaying
    quick.policy(rounds=2, quorum=2)
    quick.released(2)
    assert refusals(quick, 1) == {}
    assert refusals(quick, 2) == {liar: Reason.wrong_plan}
    assert {each.device for each in quick.registry.rounds.updates(2)} == set(others)


def test_another_devices_update_under_ones_own_message_is_refused(quick: Fleet) -> None:
    liar, victim, _ = quick.devices.names
    quick.devices.answers[liar, "train"] = lambda message, context: update(message, victim)
    quick.policy(rounds=1, quorum=2)
    quick.released(1)
    assert refusals(quick, 1) == {liar: Reason.wrong_device}
    assert victim in {each.device for each in quick.registry.rounds.updates(1)}


def test_an_update_with_the_id_of_a_plan_that_is_yet_to_come_is_refused(quick: Fleet) -> None:
    liar, *_ = quick.devices.names
    plans: list[str] = []

    def guessing(message: Message, context: Context) -> Message:
        plans.append(decode_plan(payload_of(message.content)).id)
        return lying(liar, plan=plans[-1][::-1])(message, context)

    quick.devices.answers[liar, "train"] = guessing
    quick.policy(rounds=1, quorum=2)
    quick.released(1)
    assert plans[0] != plans[0][::-1]
    assert refusals(quick, 1) == {liar: Reason.wrong_plan}


def test_a_device_that_forges_the_digest_of_what_it_serves_is_seen_to_be_out_of_step(
    quick: Fleet,
) -> None:
    liar, *others = quick.devices.names
    quick.policy(rounds=1)
    quick.devices.says[liar] = {"serves": FORGED, "release": 1}
    quick.released(1)
    quick.run(lambda: all(quick.devices.serves.get(name) == 1 for name in others))
    found = {each.name: each.serves for each in quick.registry.devices.all()}
    assert found[liar] == FORGED
    assert {found[name] for name in others} == {quick.devices.kernels(1)}
    # It is told the release although it says that it serves it.
    assert (liar, 1) in quick.devices.told
