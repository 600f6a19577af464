"""Laws of what is served under a device's own statistics, with a private core and without one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.agent.calibrating.kept import JUDGED, kept_of, there
from clients.agent.calibrating.removing import drop, switch
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.config import load_config, save_config
from clients.agent.learner import Workbench, workbench
from clients.agent.private import cores as module
from clients.agent.private import removing
from clients.agent.private.judging import Judge
from clients.agent.private.record import unpack
from clients.agent.private.summary import standing as standing_of_core
from clients.agent.serving.held import Held
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.personal import PERSONAL, personal_of
from clients.agent.serving.probe import normalisation_of
from clients.agent.serving.serve import Serving
from clients.agent.store import open_store
from fleet.adapt.base import Base, save_base
from fleet.continual.calibration import Calibration, calibrated, calibration_of, trust_of
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import NOON, Turned, device_config
from tests.clients.agent.calibrating.changed import (
    OWN,
    add,
    changed,
    classes_of,
    trained_base,
    wearing,
    windows_of,
)
from tests.clients.agent.private.wearing import ON, Wearer
from tests.clients.agent.serving.factories import CHANNELS, LABELS, WINDOW, chain_of

LEARN = ON.model_copy(update={"epochs": 3, "rate": 0.2})


@pytest.fixture
def state(installed: Path, tmp_path: Path) -> Path:
    """A device with windows of a sensor that was changed, none with a label."""
    state = Path(shutil.copytree(installed, tmp_path / "state"))
    with open_store(state, clock=NOON.timestamp) as store:
        add(store, 100, seed=1)
    return state


@pytest.fixture
def labelled(state: Path) -> Path:
    with open_store(state, clock=NOON.timestamp) as store:
        add(store, 60, seed=2, labels=True)
    return state


@pytest.fixture
def particular(state: Path) -> Path:
    """Windows of a person who means other things by two of the names: a core has to learn it."""
    with open_store(state, clock=NOON.timestamp) as store:
        add(store, 60, seed=2, labels=True, names=(LABELS[1], LABELS[0], *LABELS[2:]))
    return state


def right(model: DeviceModel) -> float:
    """Share of windows that came later which a model gets right."""
    found, _ = model.predict(windows_of(200, seed=5))
    wanted = np.array(LABELS)[classes_of(200)]
    return float(np.mean(np.array(found) == wanted))


def kernels_of(wearer: Wearer) -> list[Path]:
    return sorted(wearer.device.serving.folder.own.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet"])
def test_the_kernels_that_are_served_compute_what_network_and_maps_do(
    name: str, base: Base, tmp_path: Path
) -> None:
    if name != base.record.model.name:
        base = trained_base(name, steps=3)
    release = KeptRelease.of_release(chain_of(base, 1)[1])
    save_base(base, tmp_path / "base.safetensors")
    serving = Serving(tmp_path / "state")
    serving.install_base(tmp_path / "base.safetensors")
    x = normalisation_of(base.record).apply(windows_of(64, seed=1))
    own = calibration_of(base, x, trust=trust_of(64))
    held = Held(serving.folder)
    folder = serving.folder.own
    folder.mkdir()
    with serving.locked():
        alone = held.merged(release, folder)
        whole = held.merged(release, folder, own)
        again = held.merged(release, folder, own)
        mild = calibration_of(base, x, trust=0.25)
        other = held.merged(release, folder, mild)
    assert whole.pointer == again.pointer
    names = {one.pointer.name for one in (alone, whole, other)}
    assert len(names) == 3
    bench = Workbench(base, calibrated(workbench(base).network, own), own.maps)
    with torch.inference_mode():
        wanted = bench.served(release.state)(torch.from_numpy(x))
        got = whole.network(torch.from_numpy(x))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(alone.network(torch.from_numpy(x)), wanted, atol=1e-2)
    assert [p.shape for p in whole.network.parameters()] == [
        p.shape for p in alone.network.parameters()
    ]  # so inference costs what it cost before


@pytest.mark.parametrize("number", [0, 1])
def test_without_any_label_they_are_served_and_a_changed_sensor_is_understood(
    state: Path, turned: Turned, releases: list[Release], number: int
) -> None:
    with wearing(state, turned.world()) as wearer:
        if number:
            wearer.serve(releases[number])
        before = right(wearer.model())
        running = wearer.model()
        assert wearer.cores.look() == "off"  # of the private core
        after = right(running)
        assert running.personal
        assert running.served.digest == wearer.release_digest
        assert after > before + 0.08
        note = personal_of(wearer.device.serving.folder)
        kept = kept_of(wearer.device.store)
        assert note is not None
        assert kept is not None
        assert (note.core, note.statistics) == (False, kept.digest)
        identity = wearer.device.serving.folder.identity(PERSONAL)
        wearer.cores.look()
        assert wearer.device.serving.folder.identity(PERSONAL) == identity
    assert len(turned.said("personal.served")) == 1


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


def test_a_new_release_answers_alone_until_they_are_in_it_too(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with wearing(state, turned.world()) as wearer:
        for number in (1, 2):
            wearer.serve(releases[number])
            assert wearer.model().digest == wearer.release_digest
            wearer.cores.look()
            assert wearer.model().personal
            assert len(kernels_of(wearer)) == 1


def test_where_windows_are_kept_back_they_are_served_only_if_they_are_better_there(
    labelled: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    with wearing(labelled, turned.world()) as wearer:
        wearer.serve(releases[1])
        wearer.cores.look()
        said = wearer.device.store.state.get(JUDGED)
        assert said["windows"] > 5
        assert said["loss-after"] < said["loss-before"] - 0.05
        assert wearer.model().personal
        # From now on every label says that the fleet's were right.
        monkeypatch.setattr(Judge, "_fleet", swapped(Judge._fleet))
        wearer.serve(releases[2])
        wearer.cores.look()
        said = wearer.device.store.state.get(JUDGED)
        assert said["loss-after"] > said["loss-before"]
        assert wearer.model().digest == wearer.release_digest
        assert kernels_of(wearer) == []


def swapped(original: Any) -> Any:
    """Judge the other way round."""

    def fleet(*args: Any) -> dict[str, Any]:
        found = original(*args)
        found["loss-before"], found["loss-after"] = found["loss-after"], found["loss-before"]
        return dict(found)

    return fleet


def test_they_are_judged_once_and_again_when_labels_have_come(
    state: Path, turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [0]
    original = Judge._fleet

    def counted(*args: Any) -> dict[str, Any]:
        counts[0] += 1
        return original(*args)

    monkeypatch.setattr(Judge, "_fleet", counted)
    found = []
    with wearing(state, turned.world()) as wearer:
        add(wearer.device.store, 400, seed=9)  # so that nothing new is due
        for seed, count in enumerate((0, 20, 0, 10, 10), 10):
            if count:
                add(wearer.device.store, count, seed=seed, labels=True)
            wearer.cores.look()
            found.append(counts[0])
    assert found == [0, 1, 1, 1, 2]


def test_a_private_core_is_learned_and_judged_under_them_and_served_with_them(
    particular: Path,
    turned: Turned,
    releases: list[Release],
    base: Base,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    benches: list[Workbench] = []
    original = module.__dict__["learned"]

    def learned(*args: Any, **words: Any) -> Any:
        benches.append(words["bench"])
        return original(*args, **words)

    monkeypatch.setattr(module, "learned", learned)
    with wearing(particular, turned.world(), OWN, LEARN) as wearer:
        wearer.bring(releases[1])
        assert wearer.cores.look() == "trained"
        store, row = wearer.device.store, wearer.row
        kept = kept_of(store)
        assert kept is not None
        assert row.judged["statistics"] == kept.digest
        assert row.serves == (
            row.judged["loss-after"] < min(row.judged["loss-before"], row.judged["loss-fleet"])
        )
        assert row.serves
        note = personal_of(wearer.device.serving.folder)
        assert note is not None
        assert (note.core, note.statistics) == (True, kept.digest)
        own = Calibration.of_arrays(kept.arrays)
        bench = Workbench(base, calibrated(workbench(base).network, own), own.maps)
        [used] = benches
        assert all(torch.equal(used.maps[name][0], bench.maps[name][0]) for name in own.maps)
        x = windows_of(16, seed=5)
        raw = torch.from_numpy(normalisation_of(base.record).apply(x))
        state = wearer.device.serving.held.kept(1).state + unpack(row.payload)
        wanted = torch.softmax(bench.served(state)(raw), dim=-1).detach().numpy()
        np.testing.assert_allclose(wearer.model().predict(x)[1], wanted, atol=1e-5)
        # Under others it is judged again, and not learned again.
        add(store, 128, seed=6)
        assert wearer.cores.look() == "current"
        assert wearer.row.digest == row.digest
        assert wearer.row.judged["statistics"] != kept.digest
        assert len(turned.said("personal.judged")) == 1
        # Without them likewise.
        changed(wearer, statistics=OwnStatistics())
        assert wearer.cores.look() == "current"
        assert "statistics" not in wearer.row.judged
        assert "loss-fleet" not in wearer.row.judged


def test_a_core_that_does_not_help_under_them_leaves_them_served_alone(
    labelled: Path, turned: Turned, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Judge.core

    def worse(*args: Any) -> dict[str, Any]:
        found = core(*args)
        return found | {"loss-after": found["loss-before"] + 1}

    monkeypatch.setattr(Judge, "core", worse)
    with wearing(labelled, turned.world(), OWN, LEARN) as wearer:
        wearer.bring(releases[1])
        assert wearer.cores.look() == "trained"
        assert not wearer.row.serves
        note = personal_of(wearer.device.serving.folder)
        assert note is not None
        assert (note.core, bool(note.statistics)) == (False, True)
        store, folder = wearer.device.store, wearer.device.serving.folder
        assert standing_of_core(store, folder, True)["served"] is None


@pytest.mark.parametrize("windows", [0, 128])
def test_a_core_that_was_interrupted_goes_on_only_under_the_same_statistics(
    labelled: Path,
    turned: Turned,
    releases: list[Release],
    monkeypatch: pytest.MonkeyPatch,
    windows: int,
) -> None:
    resumed = []
    original = module.__dict__["learned"]

    def learned(*args: Any, **words: Any) -> Any:
        resumed.append(words["resume"].steps if words["resume"] else 0)
        return original(*args, **words)

    monkeypatch.setattr(module, "learned", learned)
    with wearing(labelled, turned.world(), OWN, LEARN) as wearer:
        wearer.bring(releases[1])
        agent = wearer.device.agent
        with monkeypatch.context() as patched:
            patched.setattr(type(agent), "wanted", property(lambda _: len(resumed) > 0))
            assert wearer.cores.look() == module.WANTED
        if windows:
            add(wearer.device.store, windows, seed=7)
        assert wearer.cores.look() == "trained"
    assert resumed == [0, 0 if windows else 1]


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


def test_off_and_drop_hold_at_once_from_another_process(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    save_config(device_config().model_copy(update={"statistics": OWN}), state)
    with wearing(state, turned.world()) as wearer:
        wearer.serve(releases[1])
        wearer.cores.look()
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
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    save_config(device_config().model_copy(update={"statistics": OWN}), state)
    with wearing(state, turned.world()) as wearer:
        wearer.serve(releases[1])
        wearer.cores.look()
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


def test_windows_of_zeros_do_not_end_what_serves(state: Path, turned: Turned) -> None:
    with wearing(state, turned.world()) as wearer:
        wearer.cores.look()
        model = wearer.model()
        _, probabilities = model.predict(np.zeros((2, CHANNELS, WINDOW)))
        assert np.isfinite(probabilities).all()
