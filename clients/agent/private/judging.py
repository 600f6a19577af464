"""What the labelled windows that are kept back say of what is the device's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clients.agent.answering.labelled import LARGEST_TRAINING, counted, raw_training
from clients.agent.calibrating.kept import JUDGED, judged_of, kept_of
from clients.agent.calibrating.statistics import Footing
from clients.agent.config import DeviceConfig
from clients.agent.learner import workbench
from clients.agent.private.learning import helps, judged
from clients.agent.private.split import Sides, split
from clients.agent.serving.held import Held
from clients.agent.serving.kept import KeptRelease
from clients.agent.store import Store
from fleet.adapt.state import CoreState
from fleet.seeds import generator

__all__ = ["POOL", "Judge"]

POOL = 8
"""Of the newest windows, so many times as many as may train are looked at."""
AGAIN = 2
"""Statistics are judged again once there are so many times the labelled windows."""


class Judge:
    """Judges beside the release under the fleet's statistics; the caller works alone.

    Args:
        store: Windows and labels.
        held: Base and releases.
        config: Reads the device's configuration.
    """

    def __init__(self, store: Store, held: Held, config: Callable[[], DeviceConfig]) -> None:
        self._store = store
        self._held = held
        self._config = config

    def sides(self, release: KeptRelease, seed: int) -> Sides:
        """Return the windows that train the private core on a release, and those that judge."""
        options, about = self._config().personal, self._held.base.record
        newest = min(LARGEST_TRAINING, max(options.min_windows, POOL * options.windows))
        found, classes = raw_training(self._store, about, newest)
        name = self._config().name
        rng = generator(seed, release.number, name, "continual/personal/windows")
        return split(found, classes, about, most=options.windows, rng=rng)

    def known(self) -> int:
        """Return how many labelled windows there are to train on."""
        return counted(self._store.windows.counts(), self._held.base.record)[0]

    def core(
        self, release: KeptRelease, core: CoreState, footing: Footing, sides: Sides | None = None
    ) -> dict[str, Any]:
        """Return what is said of a private core beside a release.

        Under own statistics ``loss-before`` and ``loss-after`` are, and ``loss-fleet`` is that of
        the release alone under the fleet's.
        """
        sides = self.sides(release, 0) if sides is None else sides
        state = release.state
        found = self._about(release, footing)
        found |= judged((footing.bench, state), (footing.bench, state + core), sides)
        if footing.digest and found["windows"]:
            found["loss-fleet"] = self._fleet(release, footing, sides)["loss-before"]
        return found

    def statistics(self, release: KeptRelease, footing: Footing) -> bool:
        """Tell whether own statistics are to be served beside a release.

        They are unless windows kept back say otherwise: without labels nothing does. What was said
        is kept until release, statistics or the labelled windows have become others.
        """
        if footing.kept is None:
            return False
        about, known = self._about(release, footing), self.known()
        said = judged_of(self._store)
        if {name: said.get(name) for name in about} != about or known >= max(
            1, AGAIN * int(said.get("known", 0))
        ):
            found = self._fleet(release, footing, self.sides(release, 0)) if known else {}
            said = {"windows": 0, **about, "known": known, **found}
            self._note(said, footing)
        return not said.get("windows") or helps(said)

    def _fleet(self, release: KeptRelease, footing: Footing, sides: Sides) -> dict[str, Any]:
        """Return what is said of a release under the fleet's statistics and under own ones."""
        fleet = workbench(self._held.base)
        return dict(judged((fleet, release.state), (footing.bench, release.state), sides))

    def _note(self, said: dict[str, Any], footing: Footing) -> None:
        with self._store.transaction():
            # Of statistics that went with somebody meanwhile nothing is kept.
            kept = kept_of(self._store)
            if kept is not None and kept.digest == footing.digest:
                self._store.state.put(JUDGED, said)

    def _about(self, release: KeptRelease, footing: Footing) -> dict[str, Any]:
        found: dict[str, Any] = {"state": release.state.digest, "number": release.number}
        return found | ({"statistics": footing.digest} if footing.digest else {})
