from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleet.continual.scenario import Scenario
from fleet.har import synthetic
from fleet.har.dataset import DataSet
from fleet.har.normalise import Normalisation
from fleet.har.population import Population

__all__ = ["FLEET", "PLAIN", "SOURCE", "dataset", "everything", "population", "scenario"]

PLAIN = Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32))
SOURCE, FLEET = (1, 2), (3, 4, 5)


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    """Five people; the fourth never runs, and has lain down once."""
    whole = synthetic.make(people=5, windows_per_activity=12)
    running, lying = (whole.labels.index(label) for label in ("running", "lying"))
    fourth = whole.subject == 4
    gone = fourth & (whole.y == running)
    gone[np.flatnonzero(fourth & (whole.y == lying))[1:]] = True
    kept = np.flatnonzero(~gone)
    fields = {name: getattr(whole, name)[kept] for name in ("x", "y", "subject", "rec")}
    return replace(whole, **fields)


@pytest.fixture(scope="module")
def population(dataset: DataSet) -> Population:
    return Population(dataset, SOURCE, FLEET, None)


def scenario(*events: dict[str, Any], **fields: Any) -> Scenario:
    base = {"name": "mine", "about": "A test.", "periods": 8, "devices": 6}
    sizes = {"windows_per_period": 14, "test_windows_per_period": 7}
    return Scenario.model_validate({**base, **sizes, **fields, "events": events})


def everything(**fields: Any) -> Scenario:
    """Everything at once."""
    return scenario(
        {"kind": "shift", "at": 1, "shift": "remount:30+gain:10", "share": 0.5},
        {"kind": "shift", "at": 2, "until": 6, "shift": "rate:10+noise:20+remount:20"},
        {"kind": "shift", "at": 3, "ends": 5, "shift": "placement:20", "share": 0.3},
        {"kind": "classes", "at": 2, "count": 2},
        {"kind": "classes", "at": 5, "count": 0},
        {"kind": "prior", "at": 1, "concentration": 1.0, "every": 3},
        {"kind": "join", "at": 3, "share": 0.3},
        {"kind": "leave", "at": 6, "share": 0.5},
        **{"start_classes": 3, "label_fraction": 0.5, "label_delay": 2, "online": 0.6, **fields},
    )
