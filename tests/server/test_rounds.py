from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients import bridge
from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.errors import RoundError, TooFewDevices
from fleet.federate.admission import Reason
from fleet.federate.releases import Release, first_release
from fleet.har.population import Population
from fleet.peft.core import core
from server import coordinator as c
from server.app import task_of
from server.flower import wire_bytes
from server.messages import content_of, payload_of
from server.rounds import Shell, Traffic
from simulations.inprocess import InProcessGrid
from tests.simulations.tiny_fleet import RATE, MakeConfig

# What a device does instead of sending the honest reply that it is given.
Lie = Callable[[Message, Message], Message]
LIAR = 1
CLASSES = 7


@dataclass
class Kept:
    """A sink that keeps everything in memory."""

    records: list[c.RoundRecord] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    evaluations: dict[int, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)
    answers: list[tuple[int, str, int]] = field(default_factory=list)
    on_publish: Callable[[int], object] = lambda number: None

    def publish(self, record: c.RoundRecord, release: Release | None, traffic: Traffic) -> None:
        self.records.append(record)
        self.traffic.append(traffic)
        if release is not None:
            self.releases.append(release)
        self.on_publish(record.round)

    def evaluated(self, release: Release, results: Mapping[str, NDArray[np.int64]]) -> None:
        self.evaluations[release.number] = results

    def answered(self, round_number: int, device: str, of: int) -> None:
        self.answers.append((round_number, device, of))

    def reasons(self, index: int = 0) -> dict[str, Reason]:
        return {refusal.device: refusal.reason for refusal in self.records[index].refused}


def make_app(lies: Mapping[str, Lie], liar: int = LIAR) -> ClientApp:
    """Wrap the real bridge; the device ``liar`` lies in answer to the kinds of message named."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        honest = bridge.app(message, context)
        lie = lies.get(message.metadata.message_type)
        if lie is None or context.node_config["partition-id"] != liar:
            return honest
        return lie(message, honest)

    app.train()(answer)
    app.evaluate()(answer)
    app.query("status")(answer)
    return app


@dataclass
class Setting:
    """A fleet of three with everything that a run over a grid needs."""

    base: Base
    people: Population
    make_config: MakeConfig

    def grid(
        self, app: ClientApp = bridge.app, *, offline: set[int] | None = None
    ) -> InProcessGrid:
        config = self.make_config().for_flower()
        absent = offline if offline is not None else set[int]()
        return InProcessGrid(app, 3, run_config=config, offline=absent.__contains__)

    def run(self, grid: InProcessGrid, sink: Kept | None = None, **rules: Any) -> Kept:
        return self.shell_run(grid, sink, **rules)[0]

    def shell_run(
        self, grid: InProcessGrid, sink: Kept | None = None, **rules: Any
    ) -> tuple[Kept, Shell, c.State]:
        kept = sink or Kept()
        task = task_of(self.make_config(), self.base, core, RATE)
        start = first_release(self.base, "core", task.layout)
        shell = Shell(grid, grid.clock, grid.wait, kept, "core", classes=CLASSES)
        fields: dict[str, Any] = {"rounds": 1, "minimum": 3, "deadline_s": 60.0, "wait_s": 30.0}
        state = shell.run(c.begin(c.Rules(**{**fields, **rules}), task, start))
        return kept, shell, state


@pytest.fixture
def setting(tiny_base: Base, tiny_people: Population, make_config: MakeConfig) -> Setting:
    return Setting(tiny_base, tiny_people, make_config)


@pytest.fixture(scope="module")
def without_liar(tiny_base: Base, tiny_people: Population, make_config: MakeConfig) -> Release:
    """Release 1 of a fleet in which the liar was never there."""
    setting = Setting(tiny_base, tiny_people, make_config)
    return setting.run(setting.grid(offline={LIAR}), minimum=2).releases[-1]


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
    monkeypatch.setattr("server.rounds.LARGEST_QUESTION", 2)
    in_parts = setting.run(setting.grid(), cohort=2)
    assert in_parts.releases[-1].digest == at_once.releases[-1].digest
    assert sorted(in_parts.evaluations[1]) == list(setting.people.devices)


def test_the_same_run_twice_ends_in_the_same_digest(setting: Setting) -> None:
    one, two = (setting.run(setting.grid(), rounds=2).releases[-1] for _ in range(2))
    assert one.digest == two.digest
    assert one.state.norm > 0


def raw(data: bytes, size: int = 640) -> Array:
    return Array(dtype="float32", shape=(size,), stype="numpy.ndarray", data=data)


def saved(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3, np.float32))
    return file.getvalue()


def with_array(change: Callable[[NDArray[Any]], Array | NDArray[Any]]) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        changed = change(honest.content["arrays"]["packed"].numpy().copy())  # type: ignore[union-attr,index]
        packed = changed if isinstance(changed, Array) else Array(changed)
        content = RecordDict({"arrays": ArrayRecord({"packed": packed})})
        content["config"] = honest.content["config"]
        return Message(content, reply_to=message)

    return lie


def with_config(**changes: Any) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        config = ConfigRecord({**honest.content.config_records["config"], **changes})
        content = RecordDict({"config": config, "arrays": honest.content["arrays"]})
        return Message(content, reply_to=message)

    return lie


def with_records(change: Callable[[RecordDict], object]) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        change(honest.content)
        return Message(honest.content, reply_to=message)

    return lie


def nothing(message: Message, honest: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def failing(message: Message, honest: Message) -> Message:
    raise OSError("the sensor is gone")


def declining(message: Message, honest: Message) -> Message:
    content = RecordDict({"config": ConfigRecord({"format": 1, "declined": "hot", "detail": "80"})})
    return Message(content, reply_to=message)


def spoiled(array: NDArray[Any]) -> NDArray[Any]:
    array[0] = np.nan
    return array


HUGE = saved(np.zeros(3, np.float32)).replace(b"(3,)", b"(3" + b"0" * 14 + b",)")
LIES: list[tuple[str, Reason, Lie]] = [
    ("NaN", Reason.not_finite, with_array(spoiled)),
    ("too large", Reason.entry_too_large, with_array(lambda a: a + np.float32(9))),
    ("another shape", Reason.wrong_shape, with_array(lambda a: a[:-1])),
    ("two dimensions", Reason.wrong_shape, with_array(lambda a: a.reshape(1, -1))),
    ("float64", Reason.wrong_dtype, with_array(lambda a: a.astype(np.float64))),
    ("garbage", Reason.malformed, with_array(lambda a: raw(b"garbage"))),
    ("nothing", Reason.malformed, with_array(lambda a: raw(b""))),
    ("a zip archive", Reason.malformed, with_array(lambda a: raw(zipped()))),
    ("a damaged zip archive", Reason.malformed, with_array(lambda a: raw(zipped()[:40]))),
    ("more than memory holds", Reason.malformed, with_array(lambda a: raw(HUGE))),
    ("a pickle", Reason.malformed, with_array(lambda a: raw(saved(np.array([None]))))),
    ("a cut array", Reason.malformed, with_array(lambda a: raw(saved(a)[:-1]))),
    (
        "one more array",
        Reason.malformed,
        with_records(lambda r: r.array_records["arrays"].update(more=Array(np.zeros(1)))),
    ),
    (
        "one more array record",
        Reason.malformed,
        with_records(lambda r: r.update(more=ArrayRecord([np.zeros(1)]))),
    ),
    (
        "one more metric",
        Reason.malformed,
        with_records(lambda r: r.update(metrics=MetricRecord({"accuracy": 1.0}))),
    ),
    ("no config", Reason.malformed, with_records(lambda r: r.pop("config"))),
    ("no record", Reason.malformed, nothing),
    ("no array", Reason.wrong_shape, with_records(lambda r: r.pop("arrays"))),
    ("one more key", Reason.malformed, with_config(more=1)),
    ("one more list", Reason.malformed, with_config(more=[1, 2])),
    ("a loss that is no number", Reason.malformed, with_config(loss=float("nan"))),
    ("another device's name", Reason.wrong_device, with_config(device="person-99")),
    ("no windows", Reason.implausible_examples, with_config(examples=0)),
    ("all windows of the world", Reason.implausible_examples, with_config(examples=10**12)),
    ("an exception", Reason.failed, failing),
    ("a refusal of its own", Reason.declined, declining),
]


@pytest.mark.parametrize(("reason", "lie"), [x[1:] for x in LIES], ids=[x[0] for x in LIES])
def test_a_hostile_device_is_refused_and_the_others_make_the_release(
    setting: Setting, without_liar: Release, reason: Reason, lie: Lie
) -> None:
    kept = setting.run(setting.grid(make_app({"train": lie})))
    liar = setting.people.devices[LIAR]
    assert kept.reasons() == {liar: reason}
    assert kept.records[0].refused[0].detail
    assert kept.releases[-1].digest == without_liar.digest


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
    (reason,) = shell.unusable.values()
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
    assert grid._partitions[shell.nodes[device]] == LIAR
    assert shell.unusable == {}


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (failing, "the sensor is gone"),
        (nothing, "one config"),
        (declining, "hot: 80"),
        (with_records(lambda r: r["config"].update(device="")), "device"),
        (with_records(lambda r: r["config"].update(reason="asleep")), "asleep"),
        (with_records(lambda r: r["config"].update(train_windows=-1)), "train_windows"),
    ],
)
def test_a_node_whose_status_is_none_is_left_out_with_the_reason(
    setting: Setting, without_liar: Release, lie: Lie, told: str
) -> None:
    kept, shell, _ = setting.shell_run(setting.grid(make_app({"query.status": lie})), minimum=2)
    (reason,) = shell.unusable.values()
    assert told in reason
    assert kept.releases[-1].digest == without_liar.digest


def test_too_few_usable_devices_end_the_run_within_the_wait_and_say_why(setting: Setting) -> None:
    grid = setting.grid(make_app({"query.status": failing}))
    with pytest.raises(TooFewDevices, match="2 usable") as ended:
        setting.run(grid, minimum=3)
    assert 30.0 <= grid.clock() <= 32.0
    assert "the sensor is gone" in ended.value.hint


def garbled(confusion: Any) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        metrics = {} if confusion is None else {"confusion": confusion}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return lie


@pytest.mark.parametrize(
    "lie",
    [
        nothing,
        failing,
        garbled(None),
        garbled(5),
        garbled([1, 2, 3]),
        garbled([1, 2, 3, 4]),
        garbled([0.5] * CLASSES**2),
        garbled([float("nan")] * CLASSES**2),
        garbled([-1] * CLASSES**2),
        garbled([2**62] * CLASSES**2),
        garbled([]),
    ],
)
def test_an_evaluation_that_is_not_whole_is_left_out(setting: Setting, lie: Lie) -> None:
    kept = setting.run(setting.grid(make_app({"evaluate": lie})))
    honest = sorted(set(setting.people.devices) - {setting.people.devices[LIAR]})
    assert {number: sorted(e) for number, e in kept.evaluations.items()} == {0: honest, 1: honest}
    assert len(kept.records[0].accepted) == 3


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
