"""Bringing a release into service, and finishing after a restart what was cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clients.agent.answering.labelled import probe_of
from clients.agent.answering.trust import UNSIGNED
from clients.agent.answering.world import Say
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.probe import Probe
from clients.agent.serving.records import Promotion
from clients.agent.serving.serve import Serving
from clients.agent.store import Store
from fleet.errors import FleetError

__all__ = ["MOST_TRIES", "Releases"]

WANTED = "release.wanted"
OUTCOME = "release.outcome"
TRIES = "release.tries"
# What is not worth a second try; a full disk is.
SETTLED = ("already-served", "probe-fell", "base-missing", "wrong-frame", "served-not-finite")
LOST = "agent-lost"
MOST_TRIES = 3
"""A release at which the process ended so often (killed for memory, say) is given up."""


class Releases:
    """Serves what the fleet asks for, if it is whole and passes the probe.

    What is wanted is durable before it is tried, so that a swap that was cut off is finished at
    the next start; what the probe refused is not tried again, nor what no try came to an end of.

    Args:
        serving: The model folder.
        store: Holds what is wanted, and the windows of the probe.
        say: Told what became of it.
        check: Raises when a release of the store may not be served now.
    """

    def __init__(
        self, serving: Serving, store: Store, say: Say, check: Callable[[KeptRelease], None]
    ) -> None:
        self._serving = serving
        self._store = store
        self._say = say
        self._check = check
        self._outlived = ""

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What became of the last release that was wanted, as JSON; None before the first."""
        found = self._store.state.get(OUTCOME)
        return found if isinstance(found, dict) else None

    def bring(self, kept: KeptRelease) -> Promotion:
        """Serve a release that is kept; whatever speaks against it is in what is returned.

        Raises:
            StorageError: When nothing could be noted or tried: ``disk-full``, ``model-busy``.
        """
        with self._store.transaction():
            self._store.state.put(WANTED, kept.name)
            self._store.state.put(TRIES, {"name": kept.name, "count": self._tries(kept.name) + 1})
        try:
            outcome = self._serving.promote(kept, self._probe_for(kept))
        finally:
            self._outlived = kept.name  # whatever it came to, this process is still there
        record = {
            "name": kept.name,
            "number": kept.number,
            "reason": outcome.reason,
            "detail": outcome.detail,
        }
        with self._store.transaction():
            self._store.state.put(OUTCOME, record)
            self._store.state.put(TRIES, None)
            if outcome.swapped or outcome.reason in SETTLED:
                self._store.state.put(WANTED, None)
        probe = outcome.probe.model_dump() if outcome.probe else None
        self._say("release.swapped" if outcome.swapped else "release.kept", **record, probe=probe)
        return outcome

    def _probe_for(self, kept: KeptRelease) -> Probe | None:
        """Return what judges a release before it is served; nothing judges a way back.

        Going back is the operator's decision, who knows what the device does not; an old plan
        that was held up somewhere never gets here, see :meth:`ahead`.
        """
        served = self._serving.served
        back = served is not None and kept.number < served.number
        return None if back else self._probe()

    def ahead(self, kept: KeptRelease) -> bool:
        """Tell whether a plan's release is newer than what is served.

        Only a message about releases may go back: an old plan that was held up somewhere must not.
        """
        served = self._serving.served
        return served is None or kept.number > served.number

    def finish(self) -> Promotion | None:
        """Serve what was wanted when the agent was cut off; None when there is nothing to do."""
        wanted = self._store.state.get(WANTED)
        if not wanted:
            return None
        try:
            if self._tries(wanted) >= MOST_TRIES:
                self._give_up(wanted)
                return None
            kept = self._serving.held.kept(wanted)
            # It may be from before a key was pinned, or of a key that is pinned no more.
            self._check(kept)
            return self.bring(kept)
        except FleetError as error:
            self._say("release.kept", name=wanted, reason=error.code, detail=error.message)
            if error.code == UNSIGNED:
                self._store.state.put(WANTED, None)
            return None

    def _tries(self, name: str) -> int:
        """Return how many tries of a release in a row ended with the process."""
        found = self._store.state.get(TRIES) or {}
        if found.get("name") != name or name == self._outlived:
            return 0
        return int(found["count"])

    def _give_up(self, name: str) -> None:
        detail = f"the agent was lost {MOST_TRIES} times while it brought {name}; it is given up"
        record = {"name": name, "number": int(name.split("-")[0]), "reason": LOST, "detail": detail}
        with self._store.transaction():
            self._store.state.put(OUTCOME, record)
            self._store.state.put(WANTED, None)
        self._say("release.kept", **record)

    def _probe(self) -> Probe | None:
        return probe_of(self._store, self._serving.held.base.record)
