"""The last release of a run reaches the devices that serve a model, and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import bridge
from fleet.adapt.base import Base
from fleet.errors import StorageError
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release, catch_up
from fleet.har.population import Population
from fleet.peft.core import core
from server.app import Surroundings, run_rounds
from server.messages import payload_of
from server.results import LARGEST_NAMED, serving_line
from server.rounds import LARGEST_REASON
from server.store import RunFolder
from simulations.inprocess import InProcessGrid
from tests.server.running import LIAR, Kept, Setting
from tests.server.test_store import make_release
from tests.simulations.tiny_fleet import RATE, MakeConfig

BEFORE, AFTER = "0b" * 32, "5e" * 32
Answer = Callable[[Message], dict[str, Any]]


class Serving:
    """An app whose devices serve what they are told; some answer otherwise.

    Args:
        answers: What a device says instead, by its partition; an error for one that raises.
        only: Partitions that serve at all.
        unusable: A partition that serves and cannot train.
    """

    def __init__(
        self,
        answers: dict[int, dict[str, Any] | Exception] | None = None,
        *,
        only: tuple[int, ...] = (0, 1, 2),
        unusable: int = -1,
    ) -> None:
        self.told: list[tuple[int, Message]] = []
        self._answers, self._only, self._unusable = answers or {}, only, unusable
        self.app = ClientApp()
        self.app.train()(bridge.app)
        self.app.evaluate()(bridge.app)
        self.app.query("status")(self._status)
        self.app.query("release")(self._release)

    def _status(self, message: Message, context: Context) -> Message:
        reply = bridge.app(message, context)
        config = reply.content.config_records["config"]
        partition = int(context.node_config["partition-id"])
        if partition in self._only:
            config.update({"serves": BEFORE, "release": 0, "version": "0.1.0"})
        if partition == self._unusable:
            config["reason"] = "no new labels"
        return reply

    def _release(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        self.told.append((partition, message))
        config = self._status(message_of("query.status", message), context)
        said = config.content.config_records["config"]
        number = int(str(message.content.config_records["config"]["release"]))
        said.update({"serves": AFTER, "release": number})
        other = self._answers.get(partition)
        if isinstance(other, Exception):
            raise other
        content = ConfigRecord(dict(said)) if other is None else ConfigRecord(other)
        return Message(RecordDict({"config": content}), reply_to=message)


def message_of(kind: str, message: Message) -> Message:
    """Return a message of another kind with the same addresses."""
    return Message(
        RecordDict({"config": ConfigRecord()}),
        dst_node_id=message.metadata.dst_node_id,
        message_type=kind,
        ttl=60.0,
        group_id="test",
    )


def test_after_the_last_round_every_serving_device_is_told_the_release_once(
    setting: Setting,
) -> None:
    fleet = Serving()
    kept = setting.run(setting.grid(fleet.app), rounds=2)
    last = kept.releases[-1]
    assert sorted(partition for partition, _ in fleet.told) == [0, 1, 2]
    assert list(kept.serving) == [2]
    for device in setting.people.devices:
        report = kept.serving[2][device]
        assert isinstance(report, DeviceStatus)
        assert (report.device, report.serves, report.release) == (device, AFTER, 2)
    for _, message in fleet.told:
        payload = payload_of(message.content)
        assert dict(payload.config) == {**catch_up(last).config, "method": "core"}
        np.testing.assert_array_equal(payload.array, last.state.flat())
        assert message.metadata.group_id == "core/query.release"
        assert message.metadata.ttl == 120.0


class Counting(InProcessGrid):
    """A grid that counts the messages of each kind, and what they weigh."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        listed = list(messages)
        self.kinds += [message.metadata.message_type for message in listed]
        return super().push_messages(listed)

    kinds: list[str]


def test_a_fleet_that_serves_nothing_is_sent_nothing_more(setting: Setting) -> None:
    grid = Counting(bridge.app, 3, run_config=setting.make_config().for_flower())
    grid.kinds = []
    kept = setting.run(grid, rounds=2)
    assert kept.serving == {}
    wanted = ["query.status"] * 3 + ["evaluate"] * 3 + (["train"] * 3 + ["evaluate"] * 3) * 2
    assert grid.kinds == wanted


def test_only_those_that_serve_are_told_also_those_that_cannot_train(setting: Setting) -> None:
    fleet = Serving(only=(1, 2), unusable=LIAR)
    kept = setting.run(setting.grid(fleet.app), minimum=2)
    people = setting.people.devices
    assert sorted(kept.serving[1]) == [people[1], people[2]]
    assert people[LIAR] not in kept.records[0].selected
    assert sorted(partition for partition, _ in fleet.told) == [1, 2]


def test_a_device_that_does_not_serve_the_release_says_why(setting: Setting) -> None:
    declined = {"format": 1, "declined": "probe-fell", "detail": "macro-F1\nfell " + "9" * 9999}
    stranger = {"device": "stranger", "train_windows": 1, "test_windows": 1, "serves": AFTER}
    broken = OSError("the disk is gone")
    kept = setting.run(setting.grid(Serving({0: declined, 1: stranger, 2: broken}).app))
    people, said = setting.people.devices, kept.serving[1]
    assert str(said[people[0]]).startswith("probe-fell: macro-F1\nfell 99")
    assert len(str(said[people[0]])) == LARGEST_REASON
    assert said[people[1]] == "answered as stranger"
    assert str(said[people[2]]).startswith("no status: ")


def test_an_answer_that_is_no_status_is_told_as_such(setting: Setting) -> None:
    kept = setting.run(setting.grid(Serving({0: {"device": "x", "serves": "short"}}).app))
    said = str(kept.serving[1][setting.people.devices[0]])
    assert "serves" in said
    assert "train_windows" in said


class Deaf(InProcessGrid):
    """A grid on which nobody ever answers what a device should serve."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        listed = list(messages)
        ids = super().push_messages(listed)
        asked = zip(ids, listed, strict=True)
        self.lost |= {i for i, m in asked if m.metadata.message_type == "query.release"}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(set(message_ids) - self.lost)

    lost: set[str]


def test_a_device_that_never_answers_costs_no_more_than_the_deadline(setting: Setting) -> None:
    grid = Deaf(Serving().app, 3, run_config=setting.make_config().for_flower())
    grid.lost = set()
    kept = setting.run(grid)
    closed_s = kept.records[-1].closed_at_s
    assert set(kept.serving[1].values()) == {"no answer within 60 s"}
    assert 60.0 <= grid.clock() - closed_s <= 62.0


def test_a_device_that_has_left_is_kept_as_offline(setting: Setting) -> None:
    offline, fleet = set[int](), Serving()
    sink = Kept(on_publish=lambda number: offline.add(LIAR))
    kept = setting.run(setting.grid(fleet.app, offline=offline), sink)
    assert kept.serving[1][setting.people.devices[LIAR]] == "offline"
    assert sorted(partition for partition, _ in fleet.told) == [0, 2]


@pytest.fixture
def run(
    tiny_base: Base, tiny_people: Population, make_config: MakeConfig
) -> Callable[..., Release]:
    def run(folder: RunFolder, app: ClientApp, *, served: bool) -> Release:
        config = make_config(rounds=1)
        grid = InProcessGrid(app, 3, run_config=config.for_flower())
        around = Surroundings(grid.clock, grid.wait, served=served)
        return run_rounds(grid, config, tiny_base, tiny_people, core, RATE, folder, around)

    return run


def test_a_resumed_run_with_nothing_left_to_do_tells_the_devices(
    run: Callable[..., Release], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    release = run(folder, bridge.app, served=True)
    assert folder.serving(1) is None
    fleet = Serving({0: {"format": 1, "declined": "busy", "detail": "it trains"}})
    assert run(folder, fleet.app, served=False).digest == release.digest
    assert fleet.told == []
    run(folder, fleet.app, served=True)
    kept = folder.serving(1)
    assert kept is not None
    assert (kept["release"], kept["digest"]) == (1, release.digest)
    assert [each.get("refused") for each in kept["devices"].values()].count("busy: it trains") == 1
    again = Serving(only=(0,))
    run(folder, again.app, served=True)
    devices = (folder.serving(1) or {})["devices"]
    served = {"serves": AFTER, "release": 1, "version": "0.1.0"}
    assert list(devices.values()) == [served] * 3


def test_what_was_said_of_another_release_of_that_number_does_not_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.served(make_release(1), {"a": "offline"})
    other = make_release(1)
    object.__setattr__(other, "method", "head")
    folder.served(other, {"b": "offline"})
    assert list((folder.serving(1) or {})["devices"]) == ["b"]
    assert folder.serving(2) is None
    (tmp_path / "served" / "000001.json").write_text("{")
    with pytest.raises(StorageError):
        folder.serving(1)


def test_the_line_of_a_run_says_who_serves_the_release_and_who_does_not() -> None:
    devices: dict[str, Any] = {
        "hall-1": {"serves": AFTER, "release": 3, "version": "0.1.0"},
        "hall-2": {"serves": AFTER, "release": 2, "version": ""},
        "hall-3": {"serves": BEFORE, "release": 3, "version": ""},
        "kitchen-1": {"refused": "probe-fell: 0.9\nto 0.5"},
    }
    assert serving_line({"release": 3, "devices": devices}, AFTER) == (
        "release 3 is served by 1 of 4 devices; hall-2 does not: serves release 2; "
        "hall-3 does not: serves kernels 0b0b0b0b0b0b…, not 5e5e5e5e5e5e…; "
        "kitchen-1 does not: probe-fell: 0.9 to 0.5"
    )


def test_the_line_of_a_large_fleet_names_a_few() -> None:
    devices = {f"device-{n:02d}": {"refused": "offline"} for n in range(LARGEST_NAMED + 3)}
    line = serving_line({"release": 3, "devices": devices}, AFTER)
    assert line.startswith(f"release 3 is served by 0 of {LARGEST_NAMED + 3} devices; ")
    assert line.count("offline") == LARGEST_NAMED
    assert line.endswith("; 3 more do not")
