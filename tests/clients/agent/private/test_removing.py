"""Forget, off and drop hold from the moment that they return, also beside an agent that runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.answering import pace
from clients.agent.answering.world import Cadence
from clients.agent.config import load_config, save_config
from clients.agent.private import cores as module
from clients.agent.private.removing import drop, forget, switch
from clients.agent.private.summary import line, standing
from clients.agent.serving.personal import PERSONAL, personal_of
from clients.agent.store import open_store
from fleet.adapt.train import AfterStep, Progress
from fleet.errors import RoundError, StorageError
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned, device_config
from tests.clients.agent.private.wearing import ON, Wearer, wear, worn
from tests.clients.agent.serving.factories import CHANNELS, WINDOW


@pytest.fixture
def state(learnt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learnt, tmp_path / "state"))


def every_byte(state: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file())


def test_forgetting_a_person_deletes_the_core_and_the_release_answers_at_once(
    wearer: Wearer, releases: list[Release]
) -> None:
    running = wearer.model()
    assert running.personal
    payload, kernels = wearer.row.payload, running.digest
    assert payload[-64:] in every_byte(wearer.state)
    done = forget(wearer.state, wearer.device.store, "ada")
    assert done.deleted["personal cores"] == 1
    assert wearer.device.store.personal.get() is None
    running.predict(np.zeros((1, CHANNELS, WINDOW)))
    assert (running.personal, running.digest) == (False, wearer.release_digest)
    left = every_byte(wearer.state)
    assert payload[-64:] not in left
    assert kernels.encode() not in left
    assert wearer.cores.look() == "few-windows"
    assert not wearer.model().personal


def test_a_core_of_somebody_forgotten_does_not_answer_although_the_release_is_damaged(
    wearer: Wearer, releases: list[Release]
) -> None:
    running, folder = wearer.model(), wearer.device.serving.folder
    for kernels in folder.served.glob("*.safetensors"):
        kernels.write_bytes(kernels.read_bytes()[:-7])
    forget(wearer.state, wearer.device.store, "ada")
    running.predict(np.zeros((1, CHANNELS, WINDOW)))
    assert (running.personal, running.served.number) == (False, 0)  # the base
    assert "no whole safetensors file" in running.problem


def test_a_core_of_somebody_forgotten_does_not_answer_although_nothing_else_can(
    wearer: Wearer, releases: list[Release]
) -> None:
    running, folder = wearer.model(), wearer.device.serving.folder
    for kernels in (folder.base, *folder.served.glob("*.safetensors")):
        kernels.write_bytes(kernels.read_bytes()[:-7])
    forget(wearer.state, wearer.device.store, "ada")
    for _ in range(2):
        with pytest.raises(StorageError) as refused:
            running.predict(np.zeros((1, CHANNELS, WINDOW)))
        assert refused.value.code == "nothing-to-serve"


def test_a_core_that_nobody_took_back_goes_on_beside_its_release_when_the_next_is_damaged(
    wearer: Wearer, releases: list[Release]
) -> None:
    running, before = wearer.model(), wearer.model().digest
    wearer.serve(releases[2])
    served = wearer.device.serving.served
    assert served is not None
    file = wearer.device.serving.folder.served_file(served.name)
    file.write_bytes(file.read_bytes()[:-7])
    running.predict(np.zeros((1, CHANNELS, WINDOW)))
    assert running.problem
    assert (running.personal, running.digest) == (True, before)


def test_forgetting_somebody_whom_it_never_learned_of_leaves_it(
    wearer: Wearer, releases: list[Release]
) -> None:
    wear(wearer.state, count=4, person="ben", seed=1)
    done = forget(wearer.state, wearer.device.store, "ben")
    assert done.deleted["personal cores"] == 0
    assert wearer.model().personal
    assert wearer.row.people == {"ada"}


def test_what_learned_of_a_person_before_is_theirs_also_after_other_windows(
    wearer: Wearer, releases: list[Release]
) -> None:
    with wearer.device.store.transaction() as connection:
        connection.execute("DELETE FROM windows")
    wear(wearer.state, person="ben", seed=1)
    wearer.bring(releases[2])
    assert wearer.cores.look() == "trained"
    assert wearer.row.people == {"ada", "ben"}
    assert forget(wearer.state, wearer.device.store, "ada").deleted["personal cores"] == 1


@pytest.mark.parametrize("way", ["forget", "drop"])
def test_what_goes_during_a_training_does_not_come_back_with_it(
    wearer: Wearer,
    turned: Turned,
    releases: list[Release],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    wearer.bring(releases[2])
    original = module.learned

    def learned(*args: Any, **kwargs: Any) -> Any:
        core = original(*args, **kwargs)
        if way == "forget":
            forget(wearer.state, wearer.device.store, "ada")
            wear(wearer.state)  # under the same name, somebody else perhaps
        else:
            drop(wearer.state, wearer.device.store)
        return core

    monkeypatch.setattr(module, "learned", learned)
    wanted = {"forget": "person-forgotten", "drop": "personal-dropped"}
    assert wearer.cores.look() == wanted[way]
    assert wearer.device.store.personal.get() is None
    assert not wearer.model().personal


def during(
    wearer: Wearer, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]
) -> list[int]:
    """Let something happen in a training before its second step ends; collect the steps."""
    original = wearer.cores._stepping
    taken: list[int] = []

    def stepping(*args: Any) -> AfterStep:
        look = original(*args)

        def step(steps: int, snapshot: Callable[[], Progress]) -> None:
            taken.append(steps)
            if steps == 2:
                happens()
            look(steps, snapshot)

        return step

    monkeypatch.setattr(wearer.cores, "_stepping", stepping)
    return taken


@pytest.mark.parametrize("way", ["forget", "drop"])
def test_what_goes_during_a_training_ends_it_with_the_step_and_leaves_no_checkpoint(
    brought: Path, tmp_path: Path, turned: Turned, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    state = Path(shutil.copytree(brought, tmp_path / "first"))
    with worn(state, turned.world()) as wearer:
        store = wearer.device.store

        def go() -> None:
            store.personal_checkpoints.put("p", "w", b"half of ada", ["ada"])
            if way == "drop":
                drop(state, store)
            else:
                forget(state, store, "ada")

        taken = during(wearer, monkeypatch, go)
        wanted = {"forget": "person-forgotten", "drop": "personal-dropped"}
        assert wearer.cores.look() == wanted[way]
        assert store.personal_checkpoints.plan() is None
        assert taken == [1, 2]


def test_a_checkpoint_is_not_kept_of_what_was_dropped_since_its_step_began(
    brought: Path, tmp_path: Path, turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Path(shutil.copytree(brought, tmp_path / "first"))
    with worn(state, turned.world(cadence=Cadence(checkpoint_s=0.0))) as wearer:
        original = pace.pack_progress

        def packed(progress: Progress) -> bytes:
            drop(state, wearer.device.store)  # after the step's look, before the transaction
            return original(progress)

        monkeypatch.setattr(pace, "pack_progress", packed)
        assert wearer.cores.look() == "personal-dropped"
        assert wearer.device.store.personal_checkpoints.plan() is None


def test_off_during_a_training_ends_it_and_on_again_it_goes_on_from_its_checkpoint(
    brought: Path, tmp_path: Path, turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores, resumed = [], []
    original = module.learned

    def learned(*args: Any, **kwargs: Any) -> Any:
        resumed.append(kwargs["resume"].steps if kwargs["resume"] else 0)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "learned", learned)
    for number, interrupted in enumerate((False, True)):
        state = Path(shutil.copytree(brought, tmp_path / f"device-{number}"))
        with worn(state, turned.world()) as wearer:
            if interrupted:
                with monkeypatch.context() as patched:
                    off = ON.model_copy(update={"on": False})
                    during(wearer, patched, lambda wearer=wearer, off=off: wearer.set(off))
                    assert wearer.cores.look() == "personal-off"
                assert wearer.device.store.personal_checkpoints.plan() is not None
                assert wearer.cores.look() == "off"
                wearer.set(ON)
            assert wearer.cores.look() == "trained"
            cores.append(wearer.row.digest)
    assert cores[0] == cores[1]
    assert resumed == [0, 0, 2]


def test_what_goes_between_training_and_serving_is_not_served(
    wearer: Wearer, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(wearer.state, wearer.device.store)
    shelf = wearer.cores._shelf
    original = shelf.put

    def put(*args: Any) -> bool:
        drop(wearer.state, wearer.device.store)
        return original(*args)

    monkeypatch.setattr(shelf, "put", put)
    assert wearer.cores.look() == "trained"
    assert not wearer.model().personal
    assert personal_of(wearer.device.serving.folder) is None


def test_a_checkpoint_of_a_training_under_way_is_theirs_too(
    wearer: Wearer, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    wearer.bring(releases[2])

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        wearer.device.store.personal_checkpoints.put("p", "w", b"half of ada", ["ada"])
        raise RoundError("agent-stopping", "the agent ends")

    monkeypatch.setattr(module, "learned", interrupted)
    assert wearer.cores.look() == "agent-stopping"
    done = forget(wearer.state, wearer.device.store, "ada")
    assert done.deleted["personal checkpoints"] == 1
    assert b"half of ada" not in every_byte(wearer.state)


def test_off_from_another_process_holds_at_once_and_keeps_the_core(
    wearer: Wearer, releases: list[Release]
) -> None:
    save_config(device_config().model_copy(update={"personal": ON}), wearer.state)
    running = wearer.model()
    config = load_config(wearer.state)
    assert switch(wearer.state, config, False)
    running.predict(np.zeros((1, CHANNELS, WINDOW)))
    assert running.digest == wearer.release_digest
    assert load_config(wearer.state).personal == ON.model_copy(update={"on": False})
    assert wearer.row.serves
    assert not switch(wearer.state, load_config(wearer.state), False)
    assert switch(wearer.state, load_config(wearer.state), True)


def test_a_switch_and_a_drop_on_a_device_without_a_model_change_what_there_is(
    tmp_path: Path, turned: Turned
) -> None:
    save_config(device_config(), tmp_path)
    assert switch(tmp_path, load_config(tmp_path), True)
    assert not switch(tmp_path, load_config(tmp_path), True)
    with open_store(tmp_path, clock=turned.world().now) as store:
        assert not drop(tmp_path, store)
        assert forget(tmp_path, store, "nobody").deleted["personal cores"] == 0


def test_people_are_told_what_there_is_and_what_it_brought(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with worn(state, turned.world()) as wearer:
        folder, store = wearer.device.serving.folder, wearer.device.store
        assert line(standing(store, folder, False)).startswith("off; served")
        drop(state, store)
        assert line(standing(store, folder, False)) == "off"
        assert line(standing(store, folder, True)) == "on; none learned yet"
        wearer.cores.look()
        found = standing(store, folder, True)
        assert found["served"] == wearer.model().digest
        assert found["core"]["people"] == 1
        assert line(found).startswith("on; served: on ")
        assert "windows kept back loss" in line(found)
        (folder.path / PERSONAL).unlink()
        assert line(standing(store, folder, True)).startswith("on; not served: on ")
