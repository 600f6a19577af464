"""How what is served under a device's own statistics is taken out again, and by what not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.agent.calibrating.kept import kept_of, there
from clients.agent.calibrating.removing import drop, switch
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.config import load_config, save_config
from clients.agent.private import removing
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned, device_config
from tests.clients.agent.calibrating.changed import (
    LEARN,
    OWN,
    add,
    changed,
    kernels_of,
    wearing,
    windows_of,
)
from tests.clients.agent.private.wearing import Wearer


@pytest.fixture
def wearer(state: Path, turned: Turned, releases: list[Release]) -> Iterator[Wearer]:
    """A device that serves release 1 under statistics of its own, which its file turns on."""
    save_config(device_config().model_copy(update={"statistics": OWN}), state)
    with wearing(state, turned.world()) as wearer:
        wearer.serve(releases[1])
        wearer.cores.look()
        yield wearer


def test_off_is_the_digest_of_a_device_that_never_had_them_and_on_again_the_same(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    never = Path(shutil.copytree(state, tmp_path / "never"))
    with wearing(never, turned.world(), OwnStatistics()) as wearer:
        wearer.serve(releases[1])
        assert wearer.cores.look() == "off"
        wanted = wearer.model().predict(windows_of(8))[1].tobytes(), wearer.model().digest
    with wearing(state, turned.world()) as wearer:
        wearer.serve(releases[1])
        wearer.cores.look()
        running = wearer.model()
        own = running.digest
        assert own != wanted[1]
        changed(wearer, statistics=OwnStatistics())
        assert wearer.cores.look() == "off"
        assert running.predict(windows_of(8))[1].tobytes() == wanted[0]
        assert running.digest == wanted[1]
        assert kernels_of(wearer) == []
        changed(wearer, statistics=OWN)
        wearer.cores.look()
        assert wearer.model().digest == own


def test_off_in_the_file_holds_at_the_base_itself_beside_private_cores(
    state: Path, turned: Turned
) -> None:
    with wearing(state, turned.world(), personal=LEARN) as wearer:
        before = wearer.model().digest
        wearer.cores.look()
        running = wearer.model()
        assert running.personal
        changed(wearer, statistics=OwnStatistics())
        assert wearer.cores.look() == "no-release"
        running.predict(windows_of(1))
        assert (running.personal, running.digest) == (False, before)


@pytest.mark.parametrize("who", ["ada", "ben"])
def test_forgetting_a_person_takes_what_is_served_of_them_out_at_once(
    state: Path, turned: Turned, releases: list[Release], who: str
) -> None:
    with wearing(state, turned.world()) as wearer:
        add(wearer.device.store, 40, seed=3, person="ben")
        wearer.serve(releases[1])
        wearer.cores.look()
        running = wearer.model()
        assert running.personal
        removing.forget(state, wearer.device.store, who)
        running.predict(windows_of(1))
        assert running.digest == wearer.release_digest
        assert not there(wearer.device.store)
        assert kernels_of(wearer) == []
        wearer.cores.look()  # and they are taken of who is left
        kept = kept_of(wearer.device.store)
        assert kept is not None
        assert kept.people == {"ada", "ben"} - {who}
        assert wearer.model().personal


def test_a_core_that_was_learned_under_somebodys_statistics_is_theirs_too(
    labelled: Path, turned: Turned, releases: list[Release]
) -> None:
    with wearing(labelled, turned.world(), OWN, LEARN) as wearer:
        add(wearer.device.store, 40, seed=3, person="ben")  # without labels
        wearer.bring(releases[1])
        assert wearer.cores.look() == "trained"
        assert wearer.row.people == {"ada", "ben"}
        done = removing.forget(labelled, wearer.device.store, "ben")
        assert done.deleted["personal cores"] == 1


def test_a_core_that_knew_nobody_else_stays_and_answers_without_the_statistics_of_who_goes(
    particular: Path, turned: Turned, releases: list[Release]
) -> None:
    with wearing(particular, turned.world(), OWN, LEARN) as wearer:
        wearer.bring(releases[1])
        assert wearer.cores.look() == "trained"
        add(wearer.device.store, 100, seed=3, person="ben")  # without labels
        assert wearer.cores.look() == "current"
        assert wearer.row.people == {"ada"}
        running = wearer.model()
        assert running.personal
        done = removing.forget(particular, wearer.device.store, "ben")
        assert done.deleted["personal cores"] == 0
        running.predict(windows_of(1))
        assert running.digest == wearer.release_digest
        assert kernels_of(wearer) == []


def test_off_and_drop_hold_at_once_from_another_process(state: Path, wearer: Wearer) -> None:
    running, store = wearer.model(), wearer.device.store
    own = running.digest
    assert switch(state, load_config(state), False)
    running.predict(windows_of(1))
    assert running.digest == wearer.release_digest
    assert kept_of(store) is not None
    assert not switch(state, load_config(state), False)
    assert switch(state, load_config(state), True)
    wearer.cores.look()
    running.predict(windows_of(1))
    assert running.digest == own
    assert drop(state, store)
    running.predict(windows_of(1))
    assert running.digest == wearer.release_digest
    assert not there(store)
    assert not drop(state, store)


def test_a_private_core_alone_is_not_taken_out_by_turning_them_off(
    particular: Path, turned: Turned, releases: list[Release]
) -> None:
    with wearing(particular, turned.world(), OwnStatistics(), LEARN) as wearer:
        save_config(device_config().model_copy(update={"personal": LEARN}), particular)
        wearer.bring(releases[1])
        wearer.cores.look()
        assert wearer.model().personal
        assert not switch(particular, load_config(particular), False)
        drop(particular, wearer.device.store)
        assert wearer.model().personal


def test_they_alone_are_not_taken_out_by_turning_private_cores_off(
    state: Path, wearer: Wearer
) -> None:
    assert not removing.switch(state, load_config(state), False)
    removing.drop(state, wearer.device.store)
    assert wearer.model().personal


def test_what_is_dropped_between_taking_and_serving_is_not_served(
    state: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    with wearing(state, turned.world()) as wearer:
        shelf = wearer.cores._shelf
        original = shelf.put

        def put(*args: Any) -> bool:
            drop(state, wearer.device.store)
            return original(*args)

        monkeypatch.setattr(shelf, "put", put)
        wearer.cores.look()
        assert not wearer.model().personal
