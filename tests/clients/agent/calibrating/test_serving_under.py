"""Laws of what is served under a device's own statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.agent.calibrating.kept import JUDGED, kept_of
from clients.agent.learner import Workbench, workbench
from clients.agent.private.judging import Judge
from clients.agent.serving.held import Held
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.personal import PERSONAL, personal_of
from clients.agent.serving.probe import normalisation_of
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, save_base
from fleet.continual.calibration import calibrated, calibration_of, trust_of
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.calibrating.changed import (
    add,
    kernels_of,
    right,
    trained_base,
    wearing,
    windows_of,
)
from tests.clients.agent.serving.factories import CHANNELS, WINDOW, chain_of


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


def test_windows_of_zeros_do_not_end_what_serves(state: Path, turned: Turned) -> None:
    with wearing(state, turned.world()) as wearer:
        wearer.cores.look()
        model = wearer.model()
        _, probabilities = model.predict(np.zeros((2, CHANNELS, WINDOW)))
        assert np.isfinite(probabilities).all()
