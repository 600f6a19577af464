"""Answer to ``query.health``: readings, disk, store and the last outcomes, as flat values."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from clients.agent.answering.held import Held
from clients.agent.answering.releases import OUTCOME
from clients.agent.answering.world import World
from clients.agent.calibrating.summary import flat as statistics_of
from clients.agent.drifting.showing import tally
from clients.agent.pinned import REFUSED
from clients.agent.power.readings import QUANTITIES
from clients.agent.private.summary import flat
from clients.agent.pseudo.summary import flat as pseudo_of
from fleet.federate.wire import Payload, Scalar

__all__ = ["health_of", "values_only"]


def health_of(held: Held, world: World, doing: str, pseudo_labels: bool) -> Payload:
    """Say how the device is; what no sensor knows is left out.

    Args:
        held: Store and models.
        world: Sensors and clock.
        doing: What the agent works on.
        pseudo_labels: Whether the owner wants any.
    """
    readings = world.read()
    served, counts = held.serving.served, held.store.windows.counts()
    outcome = held.store.state.get(OUTCOME) or {}
    refused = held.store.state.get(REFUSED) or {}
    entries = held.store.journal.entries(newest=1)
    alarms, alarm_age_s = tally(held.store, world.now())
    known: dict[str, Any] = {name: getattr(readings, name) for name in QUANTITIES}
    known |= {
        "at-s": world.now(),
        "doing": doing,
        "version": held.version,
        "release": served.number if served else -1,
        "serves": served.digest if served else "",
        "release-outcome": outcome.get("reason"),
        "release-detail": outcome.get("detail"),
        "release-refused": refused.get("reason"),
        "release-refused-detail": refused.get("detail"),
        "release-refused-at-s": refused.get("at_s"),
        "last-training": entries[-1].event if entries else None,
        "windows": sum(counts.values()),
        "labelled": sum(n for (_, label), n in counts.items() if label is not None),
        "drift-alarms": alarms or None,
        "drift-age-s": alarm_age_s if alarm_age_s >= 0 else None,
        **flat(held.store, held.serving.folder),
        **statistics_of(held.store, held.serving.folder, world.now()),
        **pseudo_of(held.store, held.serving.folder, pseudo_labels),
        "waiting-updates": len(held.store.outbox.waiting()),
        "store-bytes": held.store.windows.bytes(),
        "disk-free-bytes": shutil.disk_usage(held.state).free,
        **{f"counter.{name}": value for name, value in held.store.counters.all().items()},
    }
    return values_only({name: value for name, value in known.items() if value is not None})


def values_only(values: Mapping[str, Scalar]) -> Payload:
    """Return a message that carries values and no array."""
    return Payload(np.zeros(0, np.float32), dict(values))
