"""Which guards devices that train together may have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.agent.learner import Learner, Windows, Workbench
from fleet.adapt.state import CoreState
from fleet.adapt.train import Guard
from fleet.continual.guards import Anchor, Distil
from fleet.errors import ModelError
from simulations.cohort.worker import pulls_of
from tests.fleet.continual.bases import make_base, state_of, windows_of
from tests.simulations.continual.test_private_training import plan_of

BASE = make_base()
RELEASE = state_of(BASE)


def pulls(*guards: Guard) -> CoreState | None:
    bench, x, y = Workbench(BASE), windows_of(6), np.arange(6) % 4
    learner = Learner("a", BASE, Windows(x, y, x, y), bench=bench, guards=lambda *_: guards)
    return pulls_of(learner, plan_of(bench, RELEASE, "core+head", 0.05), RELEASE)


def test_pulls_to_the_release_add_up_entry_by_entry() -> None:
    fisher = state_of(BASE, seed=8)
    found = pulls(Anchor(RELEASE, 0.5), Anchor(RELEASE, 2.0, fisher))
    assert found is not None
    np.testing.assert_allclose(found.flat(), 0.5 + 2.0 * fisher.flat(), rtol=1e-6)
    assert pulls() is None


@pytest.mark.parametrize(
    "guard", [Anchor(state_of(BASE, seed=9), 0.5), Distil(torch.zeros(6, 4), 1.0)]
)
def test_a_guard_that_is_no_pull_to_the_release_is_refused(guard: Guard) -> None:
    with pytest.raises(ModelError, match="but to the release") as caught:
        pulls(guard)
    assert caught.value.code == "cohort-guard"
