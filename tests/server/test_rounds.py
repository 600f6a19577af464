from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from clients import bridge
from fleet.adapt.network import folded_network
from fleet.errors import RoundError
from fleet.federate.admission import Reason
from fleet.federate.proof import plan_signer, proof_of
from fleet.federate.releases import Release, first_release
from fleet.federate.signing import make_key, public_keys, public_of
from fleet.federate.wire import decode_plan
from fleet.peft.core import core
from server import coordinator as c
from server.app import task_of
from server.flower import wire_bytes
from server.messages import content_of, payload_of
from server.rounds import Shell
from server.signing import Signer
from simulations.inprocess import InProcessGrid
from tests.server.running import (
    CLASSES,
    LIAR,
    Kept,
    Lie,
    Setting,
    make_app,
)
from tests.simulations.tiny_fleet import RATE


def test_a_run_ends_after_its_rounds_with_a_chain_of_releases(setting: Setting) -> None:
    kept, _, state = setting.shell_run(setting.grid(), rounds=3)
    assert [record.round for record in kept.records] == [1, 2, 3]
    assert [release.number for release in kept.releases] == [1, 2, 3]
    assert kept.releases[1].parent == kept.releases[0].digest
    assert state.release.digest == kept.releases[-1].digest
    for record in kept.records:
        assert [a["device"] for a in record.accepted] == list(setting.people.devices)
        assert record.refused == ()
    assert sorted(kept.evaluations) == [0, 1, 2, 3]
    assert all(sorted(e) == sorted(setting.people.devices) for e in kept.evaluations.values())
    assert len(kept.answers) == 9


def test_a_run_with_a_key_proves_whose_every_plan_and_release_is(setting: Setting) -> None:
    key, proven = make_key(), dict[str, set[int]]()
    keys = public_keys(public_of(key))
    task = task_of(setting.make_config(), setting.base, core, RATE)
    start = first_release(setting.base, "core", task.layout)
    kept, grid = Kept(), setting.grid()
    shell = Shell(grid, grid.clock, grid.wait, kept, "core", sign=Signer(key))
    known = [start, *kept.releases]

    def look(messages: Iterable[Message]) -> Iterable[str]:
        messages, known[1:] = list(messages), kept.releases
        for message in messages:
            kind = message.metadata.message_type
            if kind == "query.status":
                continue
            payload = payload_of(message.content)
            number = payload.config.get("release")
            number = decode_plan(payload).release if kind == "train" else number
            proof = proof_of(payload.config)
            assert proof is not None
            assert proof.signer(next(r for r in known if r.number == number), keys)
            assert bool(plan_signer(payload.config, keys)) is (kind == "train")
            proven.setdefault(kind, set()).add(int(str(number)))
        return push(messages)

    push, grid.push_messages = grid.push_messages, look  # type: ignore[method-assign]
    shell.run(c.begin(c.Rules(2), task, start))
    shell.asking.serving = dict(shell.asking.nodes)  # as if they had said that they serve
    shell.serve(kept.releases[-1], 60.0)
    assert proven == {"train": {0, 1}, "evaluate": {0, 1, 2}, "query.release": {2}}


def test_every_nth_round_the_first_and_the_last_are_evaluated(setting: Setting) -> None:
    kept = Kept()
    task = task_of(setting.make_config(), setting.base, core, RATE)
    grid = setting.grid()
    shell = Shell(grid, grid.clock, grid.wait, kept, "core", evaluate_every=2)
    shell.run(c.begin(c.Rules(3), task, first_release(setting.base, "core", task.layout)))
    assert sorted(kept.evaluations) == [0, 2, 3]


def test_only_a_fixed_sample_of_the_devices_evaluates_where_one_is_asked_for(
    setting: Setting,
) -> None:
    seen = set()
    for seed in range(8):
        kept, grid = Kept(), setting.grid()
        task = task_of(setting.make_config(), setting.base, core, RATE)
        start = first_release(setting.base, "core", task.layout)
        shell = Shell(grid, grid.clock, grid.wait, kept, "core", evaluate_devices=2, seed=seed)
        shell.run(c.begin(c.Rules(1), task, start))
        samples = [tuple(sorted(results)) for results in kept.evaluations.values()]
        assert len(samples) == 2
        assert samples[0] == samples[1]
        assert len(samples[0]) == 2
        assert len(kept.records[0].accepted) == 3
        seen.add(samples[0])
    assert len(seen) > 1


def test_a_fleet_larger_than_the_queue_is_asked_part_by_part_and_ends_in_the_same_digest(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = setting.run(setting.grid(), cohort=2)
    monkeypatch.setattr("simulations.inprocess.MAX_QUEUED_MESSAGES", 2)
    monkeypatch.setattr("server.asking.LARGEST_QUESTION", 2)
    in_parts = setting.run(setting.grid(), cohort=2)
    assert in_parts.releases[-1].digest == at_once.releases[-1].digest
    assert sorted(in_parts.evaluations[1]) == list(setting.people.devices)


def test_the_same_run_twice_ends_in_the_same_digest(setting: Setting) -> None:
    one, two = (setting.run(setting.grid(), rounds=2).releases[-1] for _ in range(2))
    assert one.digest == two.digest
    assert one.state.norm > 0


def test_a_device_that_goes_offline_in_the_middle_of_a_round_has_failed(
    setting: Setting, without_liar: Release
) -> None:
    offline = set[int]()

    def unplug(message: Message, honest: Message) -> Message:
        offline.add(LIAR)
        return honest

    grid = setting.grid(make_app({"evaluate": unplug}, liar=2), offline=offline)
    kept = setting.run(grid)
    assert kept.reasons() == {setting.people.devices[LIAR]: Reason.failed}
    assert "offline" in kept.records[0].refused[0].detail
    assert kept.releases[-1].digest == without_liar.digest
    assert setting.people.devices[LIAR] not in kept.evaluations[1]


def test_a_device_that_is_offline_between_rounds_is_not_asked(setting: Setting) -> None:
    offline = set[int]()
    sink = Kept(on_publish=lambda number: offline.add(LIAR))
    kept = setting.run(setting.grid(offline=offline), sink, rounds=2, minimum=2)
    assert len(kept.records[0].selected) == 3
    assert setting.people.devices[LIAR] not in kept.records[1].selected
    assert len(kept.records[1].accepted) == 2


class Deaf(InProcessGrid):
    """A grid on which the train message to one node is never answered."""

    deaf: int

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        lost = {i for i, w in self._queue.items() if self._to_deaf(w)}
        return super().pull_messages(set(message_ids) - lost)

    def _to_deaf(self, waiting: Any) -> bool:
        from server.flower import inflate

        metadata = inflate(waiting.parcel).metadata
        return metadata.dst_node_id == self.deaf and metadata.message_type == "train"


def test_a_device_that_never_answers_costs_no_more_than_the_deadline(
    setting: Setting, without_liar: Release
) -> None:
    grid = Deaf(bridge.app, 3, run_config=setting.make_config().for_flower())
    grid.deaf = next(node for node, at in grid._partitions.items() if at == LIAR)
    kept = setting.run(grid)
    assert kept.reasons() == {setting.people.devices[LIAR]: Reason.no_reply}
    record = kept.records[0]
    assert 60.0 <= record.closed_at_s - record.opened_at_s <= 61.0
    assert kept.releases[-1].digest == without_liar.digest


class Broken(InProcessGrid):
    """A grid that takes no train message, as Flower says it: by an empty id."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        listed = list(messages)
        if listed and listed[0].metadata.message_type == "train":
            return [""] * len(listed)
        return super().push_messages(listed)


def test_a_round_whose_plan_reaches_nobody_is_abandoned_three_times_and_ends_the_run(
    setting: Setting,
) -> None:
    grid = Broken(bridge.app, 3, run_config=setting.make_config().for_flower())
    kept = Kept()
    with pytest.raises(RoundError, match="abandoned 3 times") as ended:
        setting.run(grid, kept)
    assert ended.value.code == "round-abandoned"
    assert [record.released for record in kept.records] == [False] * 3
    for record in kept.records:
        assert [r.device for r in record.refused] == sorted(setting.people.devices)


def claiming(name: str) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        honest.content.config_records["config"]["device"] = name
        return Message(honest.content, reply_to=message)

    return lie


def test_a_second_node_that_claims_a_device_is_not_used(setting: Setting) -> None:
    claimed = setting.people.devices[0]
    grid = setting.grid(make_app({"query.status": claiming(claimed)}))
    kept, shell, _ = setting.shell_run(grid, minimum=2)
    assert kept.records[0].selected == (claimed, setting.people.devices[2])
    (reason,) = shell.asking.unusable.values()
    assert reason == f"a second node claims to be {claimed}"


def test_a_device_that_comes_back_as_another_node_is_used_again(setting: Setting) -> None:
    device = setting.people.devices[0]
    offline = {LIAR}

    def swap(number: int) -> None:
        offline.clear()
        offline.add(0)

    grid = setting.grid(make_app({"query.status": claiming(device)}), offline=offline)
    kept, shell, _ = setting.shell_run(grid, Kept(on_publish=swap), minimum=2, rounds=2)
    assert kept.records[1].selected == kept.records[0].selected
    assert grid._partitions[shell.asking.nodes[device]] == LIAR
    assert shell.asking.unusable == {}


class Recording(InProcessGrid):
    """A grid that keeps every message that passes."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        listed = list(messages)
        self.passed.extend(("down", message) for message in listed)
        return super().push_messages(listed)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.passed.extend(("up", message) for message in replies)
        return replies

    passed: list[tuple[str, Message]]


def test_traffic_counts_the_packed_arrays_and_the_bytes_on_the_wire(setting: Setting) -> None:
    grid = Recording(bridge.app, 3, run_config=setting.make_config().for_flower())
    grid.passed = []
    kept = setting.run(grid, rounds=2)
    wanted = {"down": 0, "up": 0}
    for way, message in grid.passed:
        if message.metadata.message_type == "train":
            wanted[way] += wire_bytes(message).total
    down, up = (sum(getattr(t, f"wire_bytes_{w}") for t in kept.traffic) for w in ("down", "up"))
    assert {"down": down, "up": up} == wanted
    size = kept.releases[0].state.layout.size
    for traffic in kept.traffic:
        assert (traffic.messages_down, traffic.messages_up) == (3, 3)
        assert traffic.bytes_down == traffic.bytes_up == 3 * 4 * size


def test_every_message_has_a_ttl_beyond_its_deadline_and_names_its_round(setting: Setting) -> None:
    grid = Recording(bridge.app, 3, run_config=setting.make_config().for_flower())
    grid.passed = []
    setting.run(grid)
    sent = [message.metadata for way, message in grid.passed if way == "down"]
    assert {m.group_id for m in sent} == {"core/1", "core/evaluate", "core/query.status"}
    assert all(60.0 < m.ttl <= 120.0 for m in sent)


def test_a_payload_comes_back_equal_from_flowers_records(setting: Setting) -> None:
    from fleet.federate.wire import Payload

    payload = Payload(np.arange(3, dtype=np.float32), {"a": 1, "b": "x", "c": 0.5, "d": True})
    back = payload_of(content_of(payload))
    assert back.array.tolist() == [0, 1, 2]
    assert dict(back.config) == payload.config
    assert payload_of(content_of(Payload(np.zeros(0, np.float32), {}))).array.size == 0


def test_an_evaluation_is_of_the_networks_own_classes(setting: Setting) -> None:
    kept = setting.run(setting.grid())
    assert folded_network(setting.base).get_parameter("head.weight").shape[0] == CLASSES
    assert {counts.shape for counts in kept.evaluations[1].values()} == {(CLASSES, CLASSES)}
