"""The agent: answers each message of the fleet from what the device holds.

Whatever transports the messages, an answer is an update, metrics, a status, or an error that says
why not; one piece of work is done at a time, and who comes meanwhile is told "not now".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clients.agent.answering.health import health_of, values_only
from clients.agent.answering.held import Held
from clients.agent.answering.labelled import counted, labelled
from clients.agent.answering.releases import Releases
from clients.agent.answering.training import Training
from clients.agent.answering.trust import Trust
from clients.agent.answering.world import World
from clients.agent.calibrating.statistics import Statistics
from clients.agent.config import DECISIONS_FILE, DeviceConfig
from clients.agent.decisions import DecisionLog
from clients.agent.drifting.showing import tally
from clients.agent.drifting.watcher import Watcher
from clients.agent.learner import Learner, judged, metrics_of, opened, workbench
from clients.agent.serving.kept import KeptRelease
from clients.link.records import STOPPING, Answer, Metrics, Request
from fleet.errors import FleetError, InputError, MismatchError, RoundError, StorageError
from fleet.federate.records import DeviceStatus, Plan
from fleet.federate.wire import Payload, decode_plan
from fleet.measure.f1 import macro_f1_present

__all__ = ["ASIDE", "LONGEST_TRAINING_S", "NOTHING_TO_LEARN", "Agent"]

LONGEST_TRAINING_S = 24 * 3600.0
"""However long a plan's time is, a device is not at it for longer."""
WAIT_STEP_S = 0.5
"""How often whoever waits looks whether the agent ends."""
NOTHING_TO_LEARN = "no labelled windows to train on"
ASIDE = "its private core"
"""What the agent is at when it works for nobody's message."""
LOOK = "a look for drift"
MOST_STEPS = 64
"""Steps of one look for drift; what is left waits for the next."""


class Agent:
    """Answers messages; any number of threads may ask.

    Args:
        held: What is durable of the device.
        config: Reads the device's configuration, which its owner may change at any time.
        world: Clocks, sensors, and the wish to stop.

    Attributes:
        idle: Set each time that the work for a message has ended; whoever waits for it clears it.
    """

    def __init__(self, held: Held, config: Callable[[], DeviceConfig], world: World) -> None:
        self._held = held
        self._config = config
        self._world = world
        self._work = threading.Lock()
        self._doing = ""
        self._waiting = 0
        self._queue = threading.Lock()
        self.idle = threading.Event()
        self.name = config().name
        # Made while nothing else is at work: torch.fx patches modules while it traces them.
        self._bench = workbench(held.serving.held.base)
        self.trust = Trust(held, config, world)
        self.releases = Releases(held.serving, held.store, world.say, self.trust.check)
        log = DecisionLog(held.state / DECISIONS_FILE)
        self.statistics = Statistics(held.store, self._bench, config, world)
        self.training = Training(held.store, config, log, world, self.statistics)
        self._watcher = Watcher(held.store, self._bench, config, world)

    @property
    def doing(self) -> str:
        """What it works on now, for people; empty when idle."""
        return self._doing

    def answer(self, request: Request) -> Answer:
        """Answer one message.

        Args:
            request: Kind, payload, and how long whoever asks will wait.

        Raises:
            FleetError: Why not; its code is what the server records.
        """
        answers: dict[str, Callable[[Request], Answer]] = {
            "train": self._train,
            "evaluate": self._evaluate,
            "query.status": lambda _: self.status(),
            "query.health": lambda _: health_of(
                self._held, self._world, self.doing, self._config().pseudo_labels.on
            ),
            "query.release": self._serve,
        }
        if request.kind not in answers:
            raise InputError(
                "unknown-message",
                f"this agent answers {', '.join(answers)}, not {request.kind[:40]!r}",
                "Upgrade the device, or do not ask it this.",
            )
        try:
            return answers[request.kind](request)
        except FleetError as error:
            self._world.say("message.declined", kind=request.kind, reason=error.code)
            raise

    def rest(self, limit_s: float) -> bool:
        """Wait until no work is under way; from then on none begins. Tells whether it came to that.

        Set ``world.stopping`` first, so that a training under way ends with its next step.
        """
        return self._work.acquire(timeout=limit_s)

    @property
    def wanted(self) -> bool:
        """Whether a message waits for the work under way to end."""
        return self._waiting > 0

    @contextmanager
    def aside(self, what: str = ASIDE) -> Iterator[bool]:
        """Work alone at nobody's message, or give False; whoever works here looks at `wanted`."""
        if self.wanted or not self._work.acquire(blocking=False):
            yield False
            return
        self._doing = what
        try:
            self._follow()
            yield True
        finally:
            self._doing = ""
            self._work.release()

    def finish(self) -> None:
        """Serve what was wanted when the agent was cut off, unless it is at other work.

        Raises:
            RoundError: ``agent-busy``.
            StorageError: What is wanted could not be read.
        """
        with self._alone("a release", self._world.cadence.busy_s):
            self.releases.finish()

    def watch(self) -> None:
        """Show the drift detectors what has come since the last look, unless there is other work.

        A message waits for one step at most: the agent gives way between two.

        Raises:
            StorageError: A step was not kept; the next look does it again.
        """
        for _ in range(MOST_STEPS):
            with self.aside(LOOK) as free:
                if not free or self._world.stopping.is_set() or not self._watcher.step():
                    return

    def status(self) -> Payload:
        """Say who the device is, what it can train on and what it serves."""
        base = self._bench.base
        train, held_out = counted(self._held.store.windows.counts(), base.record)
        served = self._held.serving.served
        watches = self._config().drift.watch
        alarms, age_s = tally(self._held.store, self._world.now()) if watches else (0, -1)
        status = DeviceStatus(
            device=self.name,
            train_windows=train,
            test_windows=held_out,
            reason="" if train else NOTHING_TO_LEARN,
            serves=served.digest if served else "",
            release=served.number if served else -1,
            version=self._held.version,
            alarms=alarms,
            alarm_age_s=age_s,
        )
        return values_only(status.model_dump(mode="json"))

    def _train(self, request: Request) -> Payload:
        until = self._world.monotonic() + request.limit_s
        plan = decode_plan(request.payload)
        kept = self.training.answered(plan)
        if kept is None:
            with self._alone(f"training for plan {plan.id}", request.limit_s):
                # Somebody may have asked for the same plan and been first.
                kept = self.training.answered(plan) or self._trained(plan, request, until)
        try:
            self._held.store.outbox.mark_delivered(plan.id)
        except StorageError as error:  # what is kept can be sent, also from a disk that is full
            self._world.say("store.refused", reason=error.code, detail=error.message)
        return kept

    def _trained(self, plan: Plan, request: Request, until: float) -> Payload:
        _, state = opened(request.payload, self._bench)
        release = self._held.serving.take_plan(plan, request.payload, self._vouch(request))
        if self.releases.ahead(release):
            self.releases.bring(release)
        # The caller may give up sooner; its next message for this plan finds the answer.
        allowed_s = min(plan.deadline_s, LONGEST_TRAINING_S)
        latest = max(until, self._world.monotonic() + allowed_s)
        return self.training.train(plan, state, self._bench.base, latest)

    def _evaluate(self, request: Request) -> Metrics:
        with self._alone("an evaluation", self._world.cadence.busy_s):
            base = self._bench.base
            state = judged(request.payload, self._bench)
            if self.trust.wanted:
                method = str(request.payload.config.get("method"))
                self._vouch(request)(self._held.serving.told(request.payload, method))
            windows = labelled(self._held.store, base.record).windows
            counts = Learner(self.name, base, windows).evaluate(state)
        if self._config().policy.share_class_counts:
            return Metrics(metrics_of(counts))
        examples = int(counts.sum())
        # Of nothing held out there is no macro-F1, and no number may stand for it.
        score = {"macro-f1": macro_f1_present(counts)} if examples else {}
        return Metrics({"num-examples": examples, **score})

    def _serve(self, request: Request) -> Payload:
        method = request.payload.config.get("method")
        if not isinstance(method, str):
            raise MismatchError("release-method", "a release names its method", "")
        with self._alone("a release", self._world.cadence.busy_s):
            vouch = self._vouch(request)
            release = self._held.serving.catch_up(request.payload, method, vouch)
            outcome = self.releases.bring(release)
        if outcome.served is None or outcome.served.name != release.name:
            raise RoundError(outcome.reason, outcome.detail)
        return self.status()

    def _vouch(self, request: Request) -> Callable[[KeptRelease], KeptRelease]:
        return lambda release: self.trust.vouch(release, request.payload.config)

    @contextmanager
    def _alone(self, what: str, limit_s: float) -> Iterator[None]:
        """Work alone; a message for what is being done anyway waits for its end."""
        # Work aside ends by itself once somebody waits.
        patient = self._doing in (what, ASIDE, LOOK)
        wait_s = limit_s if patient else min(limit_s, self._world.cadence.busy_s)
        if not self._taken(wait_s):
            raise RoundError("agent-busy", f"not now, because the agent is at {self._doing}")
        self._doing = what
        try:
            self._follow()
            yield
            self._follow()
        finally:
            self._doing = ""
            self._work.release()
            self.idle.set()

    def _follow(self) -> None:
        """Take up the base in use, where a swap has brought another one; while alone at work.

        One that is gone is left for the next message to bring.

        Raises:
            StorageError: It could not be read.
        """
        before = self._bench.base
        try:
            base = self._held.serving.held.base
        except MismatchError as error:
            self._world.say("base.kept", base=before.digest, reason=error.code)
            return
        if base.digest == before.digest:
            return
        self._bench = workbench(base)
        self.statistics.follow(self._bench)
        self._watcher.follow(self._bench)
        self._world.say("base.changed", base=base.digest, before=before.digest)

    def _taken(self, wait_s: float) -> bool:
        """Wait for the end of other work; tells whether it came.

        Raises:
            RoundError: ``agent-stopping``: the process cannot end while a thread waits here.
        """
        self._queued(1)
        try:
            return self._waited(wait_s)
        finally:
            self._queued(-1)

    def _queued(self, change: int) -> None:
        with self._queue:
            self._waiting += change

    def _waited(self, wait_s: float) -> bool:
        while True:
            step_s = min(max(0.0, wait_s), WAIT_STEP_S)
            if self._work.acquire(timeout=step_s):
                return True
            if self._world.stopping.is_set():
                raise RoundError(STOPPING, "the agent ends; the next one answers")
            wait_s -= step_s
            if wait_s <= 0:
                return False
