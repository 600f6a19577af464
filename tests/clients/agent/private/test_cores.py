"""Laws of a private core on a device: it helps, it stays, and without it the release answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.answering.packing import pack_update
from clients.agent.private import cores as module
from clients.agent.private.record import unpack
from clients.agent.private.settings import Personal
from clients.agent.serving.personal import PERSONAL, personal_of
from clients.link.records import Metrics
from fleet.continual.personal import held_back
from fleet.errors import StorageError
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    Turned,
    fill,
    release_message,
    train_message,
)
from tests.clients.agent.private.wearing import ON, Wearer, movements, worn
from tests.clients.agent.serving.factories import CHANNELS, LABELS, WINDOW

NOTHING = Payload(np.zeros(0, np.float32), {})


def test_a_private_core_helps_a_person_whose_sensor_is_turned_on_windows_nobody_trained_on(
    wearer: Wearer, turned: Turned, releases: list[Release]
) -> None:
    assert wearer.cores.look() == "trained"
    [found] = turned.said("personal.finished")
    assert found["serves"]
    assert found["windows"] > 10
    assert found["loss-after"] < found["loss-before"] - 0.05
    assert wearer.model().personal
    # What answers is the release with the core, on windows that came later too.
    labels, _ = wearer.model().predict(movements(200, seed=3))
    wearer.set(Personal())
    wearer.cores.look()
    alone, _ = wearer.model().predict(movements(200, seed=3))
    classes = np.array(("walk", "sit", "stand", "lie"))[np.arange(200) % 4]
    assert np.mean(np.array(labels) == classes) > np.mean(np.array(alone) == classes)


def test_off_is_the_digest_of_a_device_that_never_had_one_and_on_again_the_one_before(
    wearer: Wearer, turned: Turned, releases: list[Release], installed: Path, tmp_path: Path
) -> None:
    wearer.cores.look()
    running = wearer.model()
    with_core = running.digest
    assert with_core != wearer.release_digest
    wearer.set(Personal())
    assert wearer.cores.look() == "off"
    never = Path(shutil.copytree(installed, tmp_path / "never"))
    fill(never)
    with worn(never, turned.world(), Personal()) as other:
        other.bring(releases[1])
        assert other.cores.look() == "off"
        assert other.device.store.personal.get() is None
        wanted = other.model().digest
        windows = movements(8, seed=1)
        expected = other.model().predict(windows)[1]
    got = running.predict(windows)[1]  # it followed without a restart
    assert (running.digest, running.personal) == (wanted, False)
    assert got.tobytes() == expected.tobytes()
    assert list(wearer.device.serving.folder.own.glob("*.safetensors")) == []
    wearer.set(ON)
    assert wearer.cores.look() == "current"
    assert wearer.model().digest == with_core


def test_the_fleet_gets_the_same_bytes_with_a_private_core_and_without_one(
    state: Path, turned: Turned, releases: list[Release], tmp_path: Path
) -> None:
    fill(state, train=0, held_out=12, person="ben")  # too few for a probe
    told: list[list[bytes]] = []
    for number, personal in enumerate((ON, Personal())):
        place = Path(shutil.copytree(state, tmp_path / f"device-{number}"))
        with worn(place, turned.world(), personal) as wearer:
            wearer.cores.look()
            assert wearer.model().personal is personal.on
            told.append(messages(wearer, releases))
            assert wearer.cores.look() in ("trained", "off")
            assert wearer.model().personal is personal.on
            told[-1] += messages(wearer, releases)
            health = wearer.device.ask("query.health", NOTHING).config
            extra = {name for name in health if name.startswith("personal")}
            told[-1].append(rest_of(health))
            assert bool(extra) is personal.on
    assert told[0] == told[1]


def messages(wearer: Wearer, releases: list[Release]) -> list[bytes]:
    """Every byte of what the device answers to the fleet."""
    ask = wearer.device.ask
    metrics = ask("evaluate", release_message(releases[2]))
    assert isinstance(metrics, Metrics)
    assert metrics.values["num-examples"] == 12
    return [
        pack_update(ask("train", train_message(releases[2]))),
        pack_update(ask("train", train_message(releases[2], seed=1, compression="int8"))),
        repr(metrics).encode(),
        pack_update(ask("query.release", release_message(releases[3]))),
        pack_update(ask("query.status", NOTHING)),
    ]


def rest_of(health: Any) -> bytes:
    own = ("personal", "disk-free")  # what the disk has left is nobody's secret, and moves
    return repr({k: v for k, v in health.items() if not k.startswith(own)}).encode()


def test_it_survives_a_restart_to_the_bit_and_nothing_is_learned_twice(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with worn(state, turned.world()) as wearer:
        assert wearer.cores.look() == "trained"
        before, answered = wearer.row, wearer.model().digest
    with worn(state, turned.world()) as wearer:
        assert wearer.model().digest == answered
        assert wearer.cores.look() == "current"
        assert wearer.row == before
        (wearer.device.serving.folder.path / PERSONAL).write_text("{}")
        assert not wearer.model().personal
        assert wearer.cores.look() == "current"
        assert wearer.model().digest == answered


def test_it_is_kept_across_releases_and_goes_on_from_where_it_was(
    wearer: Wearer, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    wearer.cores.look()
    first = wearer.row
    wearer.bring(releases[2])
    assert not wearer.model().personal  # it was judged beside another release
    starts = watch_learning(monkeypatch)
    assert wearer.cores.look() == "trained"
    [judged] = turned.said("personal.judged")
    assert judged["state"] == releases[2].state.digest
    assert starts == [unpack(first.payload).digest]
    assert (wearer.row.release, wearer.row.people) == (2, frozenset({"ada"}))
    found = personal_of(wearer.device.serving.folder)
    assert found is not None
    assert found.own.state == (releases[2].state + unpack(wearer.row.payload)).digest


def watch_learning(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Collect where trainings of private cores begin."""
    starts: list[str | None] = []
    original = module.learned

    def learned(*args: Any, **kwargs: Any) -> Any:
        before = args[6]
        starts.append(None if before is None else before.digest)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "learned", learned)
    return starts


def test_where_it_does_not_help_the_release_alone_answers_and_it_is_kept_to_go_on_from(
    wearer: Wearer, turned: Turned, releases: list[Release]
) -> None:
    store = wearer.device.store
    ids = store.windows.load((CHANNELS, WINDOW)).ids
    for window in ids[held_back(ids)]:  # what is kept back contradicts what is learned from
        store.labels.window(int(window), LABELS[int(window) % len(LABELS)], "ada")
    assert wearer.cores.look() == "trained"
    [found] = turned.said("personal.finished")
    assert not found["serves"]
    assert not wearer.model().personal
    assert wearer.model().digest == wearer.release_digest
    assert not wearer.row.serves


def test_the_anchor_pulls_it_to_the_release(wearer: Wearer, releases: list[Release]) -> None:
    norms = []
    for anchor in (0.0, 5.0):
        wearer.device.store.personal.drop()
        wearer.set(ON.model_copy(update={"anchor": anchor}))
        wearer.cores.look()
        norms.append(unpack(wearer.row.payload).norm)
    assert norms[1] < norms[0] / 2


def test_bytes_that_are_not_those_of_their_digest_are_dropped_and_learned_anew(
    wearer: Wearer, turned: Turned, releases: list[Release]
) -> None:
    wearer.cores.look()
    with wearer.device.store.transaction() as connection:
        connection.execute("UPDATE personal SET frame = ?", ("0" * 64,))
    with pytest.raises(StorageError, match="was kept"):
        wearer.device.store.personal.get()
    assert wearer.cores.look() == "dropped"
    assert turned.said("personal.dropped")[0]["reason"] == "personal-damaged"
    assert wearer.model().digest == wearer.release_digest
    assert wearer.cores.look() == "trained"


def test_a_served_file_that_is_damaged_leaves_the_release_answering_until_it_is_made_again(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with worn(state, turned.world()) as wearer:
        wearer.cores.look()
        [kernels] = wearer.device.serving.folder.own.glob("*.safetensors")
        kernels.write_bytes(kernels.read_bytes()[:-7])
        assert wearer.model().digest == wearer.release_digest
    with worn(state, turned.world()) as wearer:
        assert wearer.cores.look() == "current"
        assert wearer.model().personal


@pytest.mark.parametrize("way", ["deleted", "damaged"])
def test_a_served_file_that_goes_while_the_agent_runs_is_made_again_for_those_who_read_it(
    wearer: Wearer, turned: Turned, releases: list[Release], way: str
) -> None:
    wearer.cores.look()
    wearer.cores.look()
    assert len(turned.said("personal.served")) == 1
    with_core = wearer.model().digest
    [kernels] = wearer.device.serving.folder.own.glob("*.safetensors")
    if way == "deleted":
        kernels.unlink()
    else:
        kernels.write_bytes(kernels.read_bytes()[:-7])
    running = wearer.model()
    assert running.digest == wearer.release_digest
    assert wearer.cores.look() == "current"
    assert len(turned.said("personal.served")) == 2
    running.predict(movements(1, seed=3))
    assert (running.personal, running.digest) == (True, with_core)
    note = wearer.device.serving.folder.identity(PERSONAL)
    assert wearer.cores.look() == "current"
    assert wearer.device.serving.folder.identity(PERSONAL) == note  # not written at every look


def test_status_reports_the_release_and_health_what_the_core_brought(
    wearer: Wearer, releases: list[Release]
) -> None:
    wearer.cores.look()
    status = wearer.device.ask("query.status", NOTHING).config
    assert (status["release"], status["serves"]) == (1, wearer.release_digest)
    health = wearer.device.ask("query.health", NOTHING).config
    assert health["serves"] == wearer.release_digest
    assert health["personal-served"] is True
    assert health["personal-loss-after"] < health["personal-loss-before"]
