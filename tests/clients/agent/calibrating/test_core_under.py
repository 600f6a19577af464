"""Laws of a private core that is learned and judged under a device's own statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.agent.calibrating.kept import kept_of
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.learner import Workbench, workbench
from clients.agent.private import cores as module
from clients.agent.private.judging import Judge
from clients.agent.private.record import unpack
from clients.agent.private.summary import standing as standing_of_core
from clients.agent.serving.personal import personal_of
from clients.agent.serving.probe import normalisation_of
from fleet.adapt.base import Base
from fleet.continual.calibration import Calibration, calibrated
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.calibrating.changed import (
    LEARN,
    OWN,
    add,
    changed,
    wearing,
    windows_of,
)


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
