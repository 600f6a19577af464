"""The probe: the device's own labelled windows have a say in what is served."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.agent.serving.probe import MIN_WINDOWS, Probe
from clients.agent.serving.serve import Serving
from clients.agent.serving.whole import open_best
from fleet.adapt.base import Base
from fleet.adapt.train import predict
from fleet.errors import InputError
from fleet.federate.releases import Release
from tests.clients.agent.serving.factories import raw_windows


def own_probe(base: Base, serving: Serving, count: int = 64, margin: float = 0.05) -> Probe:
    """Windows labelled by what is served, which is thereby perfect."""
    raw = Probe.of_raw(base.record, raw_windows(count), np.zeros(count, np.int64))
    y = predict(open_best(serving.folder).whole.network, torch.from_numpy(raw.x))
    return Probe(raw.x, y, margin)


def test_a_release_that_falls_on_own_windows_is_not_served(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    probe = own_probe(base, serving)
    before = serving.served
    kept = serving.take(releases[4])
    outcome = serving.promote(kept, probe)
    assert (outcome.swapped, outcome.reason) == (False, "probe-fell")
    assert outcome.served == serving.served == before
    reading = outcome.probe
    assert reading is not None
    assert reading.before == 1.0
    assert reading.after is not None
    assert reading.after < 1 - probe.margin
    assert f"{reading.after:.3f}" in outcome.detail
    # Its kernels are gone again, its core state stays for another try.
    assert not serving.folder.served_file(kept.name).exists()
    assert serving.held.kept(4).name == kept.name
    assert serving.promote(kept, replace(probe, margin=1.0)).swapped


def test_a_fall_within_the_margin_is_served(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    outcome = serving.promote(serving.take(releases[4]), own_probe(base, serving, margin=1.0))
    assert outcome.swapped
    assert outcome.probe is not None
    assert outcome.probe.before == 1.0


def test_too_few_windows_are_noted_and_forbid_nothing(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    probe = own_probe(base, serving, count=MIN_WINDOWS - 1)
    outcome = serving.promote(serving.take(releases[4]), probe)
    assert outcome.swapped
    assert outcome.probe is not None
    assert outcome.probe.note == "skipped: 19 labelled windows, 20 are needed"
    without = serving.promote(serving.held.kept(0))
    assert without.probe is not None
    assert without.probe.note == "skipped: no labelled windows"


def test_a_probe_of_other_windows_is_a_reason_and_no_exception(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    probe = own_probe(base, serving)
    outcome = serving.promote(serving.take(releases[1]), replace(probe, x=probe.x[:, :, :8]))
    assert (outcome.swapped, outcome.reason) == (False, "probe-shape")


def test_a_probe_says_what_it_takes() -> None:
    x, y = np.zeros((3, 2, 4), np.float32), np.zeros(2, np.int64)
    with pytest.raises(InputError, match="classes"):
        Probe(x, y)
    with pytest.raises(InputError, match="margin is 0 to 1"):
        Probe(x[:2], y, margin=5)
