"""Evaluations: devices judge a release on their own test windows and send counts, never data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.measure.f1 import score_fleet
from server.asking import Asking
from server.messages import confusion_of
from server.registry import Registry
from server.registry.records import DeviceState
from server.standing.delivery import message_of
from server.standing.nodes import Roster
from server.standing.planning import Bench
from server.standing.world import World

__all__ = ["LONGEST_EVALUATION_S", "Judges"]

LONGEST_EVALUATION_S = 600.0
ACTOR = "service"


@dataclass
class Judges:
    """Lets devices judge releases.

    Args:
        asking: Carries messages.
        roster: Who is behind which node.
        registry: Where counts are kept.
        bench: Bases, to know how many classes there are.
        world: Words.
    """

    asking: Asking
    roster: Roster
    registry: Registry
    bench: Bench
    world: World

    def judge(self, number: int, limit_s: float) -> dict[str, float | int | None]:
        """Ask every device that is online and enrolled; keep and return what came of it.

        Args:
            number: Number of the release.
            limit_s: Seconds that devices may take.

        Returns:
            ``devices`` that judged and their pooled ``macro_f1``, None without any.
        """
        release, row = self.registry.releases.load(number), self.registry.releases.get(number)
        classes = len(self.bench.base(release.base).record.labels)
        enrolled = {d.name for d in self.registry.devices.all(state=DeviceState.enrolled)}
        to = {d: node for d, node in self.roster.awake().items() if d in enrolled}
        counts: dict[str, NDArray[np.int64]] = {}
        limit = min(limit_s, LONGEST_EVALUATION_S)
        message = message_of(release, row.signature)
        for device, reply in self.asking.ask(message, to, "evaluate", limit):
            found = None if reply.has_error() else confusion_of(reply.content, classes)
            if found is not None:
                counts[device] = found
        kept = {device: each.tolist() for device, each in counts.items()}
        self.registry.observations.evaluated(number, kept, actor=ACTOR)
        pooled = score_fleet(list(counts.values())).pooled
        score = None if np.isnan(pooled) else round(pooled, 6)
        result: dict[str, float | int | None] = {"devices": len(counts), "macro_f1": score}
        self.world.say("release.evaluated", release=number, **result)
        return result
