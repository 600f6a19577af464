"""Who is talked to: enrolled devices, known by their keys where nodes have some."""

from __future__ import annotations

import base64
from typing import Any

from server.registry.keys import fingerprint
from server.standing.nodes import STATUS_EVERY_S, fingerprint_of
from tests.server.registry.filled import OPERATOR
from tests.server.standing.doors import keyed, pair, with_keys
from tests.server.standing.standing import Fleet


def test_a_nodes_key_has_the_fingerprint_that_it_was_enrolled_by() -> None:
    pem, line = pair()
    assert fingerprint_of(pem) == fingerprint(line)
    assert fingerprint_of(b"no key") == ""
    assert fingerprint_of(base64.b64encode(pem)) == ""


def test_nodes_are_known_by_their_keys(quick: Fleet) -> None:
    keys = with_keys(quick, dict(enumerate(quick.devices.names)))
    quick.start(keyed(keys), keyed=True)
    quick.policy(rounds=1)
    quick.released(1)
    assert {each.device for each in quick.registry.rounds.updates(1)} == set(quick.devices.names)


def test_a_node_whose_key_nobody_enrolled_is_never_asked_anything(quick: Fleet) -> None:
    keys = with_keys(quick, dict(list(enumerate(quick.devices.names))[:2]))
    keys[2] = pair()[0]
    quick.start(keyed(keys), keyed=True)
    quick.policy(rounds=1, minimum=2, quorum=2)
    quick.released(1)
    stranger = quick.devices.names[2]
    assert all(device != stranger for device, _ in quick.devices.asked)
    (refused,) = quick.events("node.refused")
    assert refused["why"] == "its key is not enrolled"
    assert quick.registry.rounds.absences(1)[stranger].reason == "offline"


def test_a_node_without_a_key_is_not_asked_where_nodes_have_keys(quick: Fleet) -> None:
    quick.start(keyed=True)
    quick.policy(rounds=1)
    quick.steps(3)
    assert quick.devices.asked == []
    assert {each["why"] for each in quick.events("node.refused")} == {"it has no key"}


def test_a_device_cannot_say_that_it_is_another_one(quick: Fleet) -> None:
    first, second, third = quick.devices.names
    keys = with_keys(quick, dict(enumerate(quick.devices.names)))
    quick.devices.says[third] = {"device": first}
    quick.start(keyed(keys), keyed=True)
    quick.policy(rounds=1, minimum=2, quorum=2)
    quick.released(1)
    assert {each.device for each in quick.registry.rounds.updates(1)} == {first, second}
    absent = quick.registry.rounds.absences(1)[third]
    assert absent.reason == "offline"
    assert absent.detail == f"the node says that it is '{first}', its key is {third}'s"


def test_a_second_node_that_says_that_it_is_a_device_is_not_believed(quick: Fleet) -> None:
    first, second, third = quick.devices.names
    quick.devices.says[third] = {"device": second}
    quick.policy(rounds=1, minimum=2, quorum=2)
    quick.released(1)
    assert {each.device for each in quick.registry.rounds.updates(1)} == {first, second}
    # Which of the two is heard first is the grid's affair; the other one is refused.
    (refused,) = quick.events("node.refused")
    assert refused["why"] == f"a second node says that it is {second}"


def test_devices_that_may_not_take_part_are_not_asked_to_train(quick: Fleet) -> None:
    free, bad, gone = quick.devices.names
    quick.registry.devices.quarantine(bad, why="drifts", actor=OPERATOR)
    quick.registry.devices.revoke(gone, why="stolen", actor=OPERATOR)
    quick.policy(rounds=1, minimum=1, quorum=1)
    quick.released(1)
    absent = {d: (a.reason, a.detail) for d, a in quick.registry.rounds.absences(1).items()}
    assert absent == {bad: ("quarantined", "drifts"), gone: ("revoked", "stolen")}
    assert [device for device, _ in quick.devices.trained] == [free]
    quick.run(lambda: quick.devices.serves.get(bad) == 1)  # it is served all the same
    assert gone not in quick.devices.serves


def test_a_device_that_is_revoked_while_a_round_is_open_has_no_part_in_it(quick: Fleet) -> None:
    quick.policy(rounds=1, quorum=2, minimum=2)
    names = quick.devices.names

    def revoke(message: Any, context: Any) -> Any:
        for name in names[1:2]:
            quick.registry.devices.revoke(name, why="stolen", actor=OPERATOR)
        return quick.devices._honest("train", names[0], message, context)

    quick.devices.answers[names[0], "train"] = revoke
    quick.released(1)
    updates = {each.device for each in quick.registry.rounds.updates(1)}
    if names[1] not in updates:  # it answered after the revocation, or was not asked any more
        (refusal,) = quick.registry.rounds.refusals(1)
        assert refusal.device == names[1]
        assert "revoked" in refusal.detail
    assert len(updates) >= 2


def test_a_device_that_cannot_train_now_is_asked_again_and_joins(quick: Fleet) -> None:
    late = quick.devices.names[0]
    quick.devices.says[late] = {"train_windows": 0, "reason": "no labelled windows"}
    quick.policy(minimum=2, quorum=2)
    quick.released(1)
    absent = quick.registry.rounds.absences(1)[late]
    assert absent.reason == "no-labels"
    del quick.devices.says[late]
    quick.grid.wait(STATUS_EVERY_S)
    quick.released(2)
    assert late in {each.device for each in quick.registry.rounds.updates(2)}


def test_only_devices_with_the_policys_tags_take_part(quick: Fleet) -> None:
    lab, other, both = quick.devices.names
    quick.registry.devices.tag(lab, add=["lab"], actor=OPERATOR)
    quick.registry.devices.tag(both, add=["lab", "old"], actor=OPERATOR)
    quick.policy(rounds=1, minimum=1, quorum=1, tags=["lab"], without_tags=["old"])
    quick.released(1)
    assert quick.registry.rounds.get(1).selected == (lab,)
    details = {d: a.detail for d, a in quick.registry.rounds.absences(1).items()}
    assert details == {other: "has not the tag lab", both: "has the tag old"}
