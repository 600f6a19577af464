from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from fleet.errors import FleetError, InputError, MismatchError
from fleet.supervise.child import Exit
from fleet.supervise.ward import World
from server.service.config import ControlApi, Front, ServerConfig, Service
from simulations.box import making, running
from simulations.box.running import Steering
from simulations.box.wanted import LARGEST_BOX, Box, Wanted
from simulations.progress import Silent

NOW = datetime(2026, 11, 21, tzinfo=timezone.utc)
DIGEST = "a" * 64


@pytest.mark.parametrize("devices", [0, LARGEST_BOX + 1])
def test_a_box_has_no_more_devices_than_a_machine_carries(devices: int) -> None:
    with pytest.raises(InputError, match=str(devices)) as caught:
        Wanted(devices=devices)
    assert "fleet simulate" in caught.value.hint


def test_with_a_number_of_rounds_every_update_counts() -> None:
    policy = Wanted(devices=3, rounds=4, seed=7).policy(DIGEST, 2, 0.1)
    assert (policy.minimum, policy.quorum, policy.rounds) == (3, 3, 4)
    assert (policy.rank, policy.learning_rate, policy.seed) == (2, 0.1, 7)
    assert policy.evaluate_every == 4


def test_without_one_a_device_may_go() -> None:
    policy = Wanted(devices=3).policy(DIGEST, 4, 0.1)
    assert (policy.minimum, policy.quorum, policy.rounds) == (1, 0, 0)
    assert policy.every_s > 0
    assert policy.evaluate_every == 1
    assert Wanted(rounds=4, evaluate_every=2).policy(DIGEST, 4, 0.1).evaluate_every == 2


def test_a_box_has_the_devices_of_a_simulation_with_the_same_values() -> None:
    config = Wanted(devices=3, data="synthetic", seed=5, windows=20, base_epochs=2).config()
    found = config.devices, config.windows_per_device, config.seed, config.base_epochs
    assert found == (3, 20, 5, 2)


def test_a_folder_in_which_no_socket_can_be_is_refused(tmp_path: Path) -> None:
    assert Box(Path("/box")).device("device-00001") == Path("/box/device-00001")
    with pytest.raises(InputError) as caught:
        Box(Path("/") / ("x" * 100))
    assert caught.value.code == "folder-deep"


def test_a_folder_with_another_fleet_is_left_alone(tmp_path: Path) -> None:
    box = Box(Path("/b"))
    object.__setattr__(box, "path", tmp_path)  # pytest's folders are deep
    box.made.write_text(json.dumps(Wanted(devices=2, data="synthetic").made_of))
    with pytest.raises(InputError) as caught:
        making.make_box(Wanted(devices=3, data="synthetic"), box, Silent(), NOW)
    assert caught.value.code == "other-box"
    names = making.make_box(Wanted(devices=2, data="synthetic", rounds=9), box, Silent(), NOW)
    assert names == ("device-00000", "device-00001")


def test_a_box_that_was_cut_off_is_completed_as_the_same_fleet_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(Path("/b"))
    object.__setattr__(box, "path", tmp_path)  # pytest's folders are deep
    made: list[int] = []

    def device(fleet: object, number: int, *_: object) -> int:
        if number == 1 and made == [0]:
            raise KeyboardInterrupt
        made.append(number)
        return 1

    monkeypatch.setattr(making, "_device", device)
    monkeypatch.setattr(making, "_server", lambda *_: None)
    wanted = Wanted(devices=2, data="synthetic", base_epochs=1)
    with pytest.raises(KeyboardInterrupt):
        making.make_box(wanted, box, Silent(), NOW)
    with pytest.raises(MismatchError) as caught:
        making.make_box(replace(wanted, seed=7), box, Silent(), NOW)
    assert caught.value.code == "other-box"
    assert made == [0]
    made.append(9)
    assert len(making.make_box(wanted, box, Silent(), NOW)) == 2
    assert made == [0, 9, 0, 1]
    assert json.loads(box.made.read_text()) == wanted.made_of
    assert not box.begun.exists()


def test_ports_are_different_ones() -> None:
    assert len(set(making.free_ports(20))) == 20


def test_what_a_devices_command_refuses_is_told_with_its_own_code() -> None:
    def refuses(words: list[str]) -> int:
        envelope = {"error_code": "no-base", "message": "there is none", "hint": "Make one."}
        print(json.dumps(envelope))
        return 4

    with pytest.raises(InputError, match="fleet-device init: there is none") as caught:
        making._answer(["init"], refuses)
    assert (caught.value.code, caught.value.hint) == ("no-base", "Make one.")
    with pytest.raises(KeyboardInterrupt):
        making._answer(["init"], lambda words: 130)
    with pytest.raises(FleetError, match="exit code 5"):
        making._answer(["init"], lambda words: 5)


def test_devices_start_after_they_are_enrolled_and_end_before_the_server() -> None:
    enrolled = threading.Event()
    specs = running.specs_of(Box(Path("/box")), ["a", "b"], {"OMP_NUM_THREADS": "2"}, enrolled)
    assert [spec.name for spec in specs] == ["server", "a", "b"]
    assert specs[0].gate is None
    assert {spec.environment["OMP_NUM_THREADS"] for spec in specs} == {"2"}
    hurried = [name in spec.environment for spec in specs for name in running.DEVICE_SURROUNDINGS]
    assert hurried == [False, True, True]
    assert specs[1].gate is not None
    gate = specs[1].gate()
    world = World(lambda: 0.0, lambda: NOW, lambda: 0.5)
    assert not gate.look(world).is_open
    enrolled.set()
    assert gate.look(world).is_open


def test_only_what_stays_wrong_ends_a_box_for_good() -> None:
    line = json.dumps({"error_code": "port-taken", "message": "taken", "hint": "Free it."})
    assert running._final("server", Exit(1), [line]) is None
    assert running._final("server", Exit(-9), []) is None
    found = running._final("server", Exit(4), ["noise", "[]", line])
    assert found is not None
    assert (found.code, found.message) == ("port-taken", "server: taken")
    assert running._final("server", Exit(4), ["noise"]) is not None


def test_a_box_whose_supervisor_ends_first_is_not_ended_again() -> None:
    ended: list[str] = []
    steering = Steering(
        Wanted(), Box(Path("/box")), [], lambda seen: None, lambda: ended.append("")
    )
    steering.hear("device-00000", '"event": "server.ready"')
    assert not steering.ready.is_set()
    steering.leaving.set()
    steering.run()
    assert (ended, steering.error, steering.done) == ([], None, False)


def test_a_server_that_is_there_keeps_its_ports(tmp_path: Path) -> None:
    box = Box(Path("/b"))
    object.__setattr__(box, "path", tmp_path)
    config = making._server(box, "", NOW)
    assert config.service == Service(standing=True)
    assert config.front.port not in (Front().port, config.superlink.port)
    assert making._server(box, "", NOW) == config
    host, _, port = config.control.listen.partition(":")
    assert host == "127.0.0.1"
    assert int(port) not in (config.front.port, config.superlink.port)
    moved = making._server(box, "127.0.0.1:9443", NOW)
    assert moved == config.model_copy(update={"control": ControlApi(listen="127.0.0.1:9443")})
    assert making._server(box, "", NOW) == moved
    assert isinstance(config, ServerConfig)
