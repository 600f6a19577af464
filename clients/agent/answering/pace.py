"""How a training looks up from its work: to keep a checkpoint, and to stop where it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clients.agent.answering.packing import pack_progress
from clients.agent.answering.world import World
from clients.agent.policy import Decision
from clients.agent.store import Store
from clients.agent.store.checkpoints import Checkpoints
from clients.agent.store.forget import FORGETS
from clients.agent.store.personal import DROPS
from clients.link.records import STOPPING
from fleet.adapt.train import Progress
from fleet.errors import RoundError

__all__ = ["Errand", "Pace", "check_known", "drops_of", "forgets_of"]


@dataclass(frozen=True)
class Errand:
    """The training that is watched.

    Args:
        plan: Id of its plan.
        windows: Digest of the windows it trains on.
        people: Whose windows they are.
        forgets: How often the store had forgotten somebody when they were read.
        until: Monotonic seconds at which the plan's time is over.
        budget_s: Seconds that the policy leaves for today; infinite without a limit.
        drops: Of a private core: how often the owner had dropped it then; None for a plan, which
            a drop does not end.
    """

    plan: str
    windows: str
    people: frozenset[str]
    forgets: int
    until: float
    budget_s: float
    drops: int | None = None


class Pace:
    """Called after every optimiser step; stops a training by raising.

    Args:
        errand: What is watched.
        store: Where checkpoints go.
        world: Clocks and the wish to stop.
        look: Reads the sensors and decides anew whether the device may train.
        checkpoints: Where checkpoints go; None for the store's of plans.
    """

    def __init__(
        self,
        errand: Errand,
        store: Store,
        world: World,
        look: Callable[[], Decision],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._errand = errand
        self._store = store
        self._checkpoints = store.checkpoints if checkpoints is None else checkpoints
        self._world = world
        self._look = look
        self._began = world.monotonic()
        self._saved = self._looked = self._began

    @property
    def seconds(self) -> float:
        """Seconds that this training has taken so far."""
        return self._world.monotonic() - self._began

    def __call__(self, steps: int, snapshot: Callable[[], Progress]) -> None:
        """Keep a checkpoint or stop, when it is time to.

        Raises:
            RoundError: ``agent-stopping``, ``over-time``, ``over-budget``, or what the policy says.
            StorageError: When a checkpoint could not be kept: then the update could not be either.
        """
        now = self._world.monotonic()
        if self._world.stopping.is_set():
            self.save(snapshot)
            raise RoundError(STOPPING, f"the agent ends after step {steps}; it will go on")
        if now >= self._errand.until:
            raise RoundError("over-time", f"the plan's time was over after step {steps}")
        if self.seconds >= self._errand.budget_s:
            raise RoundError(
                "over-budget", f"today's seconds of training were used up after step {steps}"
            )
        if now - self._looked >= self._world.cadence.look_s:
            self._looked = now
            decision = self._look()
            if not decision.allowed:
                reasons = ", ".join(reason.value for reason in decision.reasons)
                raise RoundError(decision.reasons[0].value, f"{reasons}, after step {steps}")
        if now - self._saved >= self._world.cadence.checkpoint_s:
            self._saved = now
            self.save(snapshot)

    def save(self, snapshot: Callable[[], Progress]) -> None:
        """Keep a checkpoint now.

        Raises:
            RoundError: ``person-forgotten`` or ``personal-dropped``.
            StorageError: It could not be kept.
        """
        errand = self._errand
        content = pack_progress(snapshot())
        with self._store.transaction():
            check_known(self._store, errand)
            self._checkpoints.put(errand.plan, errand.windows, content, errand.people)


def forgets_of(store: Store) -> int:
    """Return how often a store has forgotten somebody."""
    return int(store.state.get(FORGETS, 0))


def drops_of(store: Store) -> int:
    """Return how often the owner has dropped the private core."""
    return int(store.state.get(DROPS, 0))


def check_known(store: Store, errand: Errand) -> None:
    """Refuse to keep what came of the windows of somebody who was forgotten meanwhile.

    Also when new windows came under the same name since, and, since nobody may keep the names,
    when it was somebody else. Likewise what the owner dropped meanwhile.

    Raises:
        RoundError: ``person-forgotten`` or ``personal-dropped``.
    """
    if store.windows.unknown(errand.people) or forgets_of(store) != errand.forgets:
        raise RoundError("person-forgotten", "somebody was forgotten during the training")
    if errand.drops is not None and drops_of(store) != errand.drops:
        raise RoundError("personal-dropped", "the owner dropped it during the training")
