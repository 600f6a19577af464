"""What a fleet in a box has come to, read from its registry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fleet.measure.f1 import macro_f1_present
from server.registry import Registry
from server.registry.records import RoundRow, RoundState

__all__ = ["Looker", "is_done"]

Json = dict[str, Any]


@dataclass
class Looker:
    """Looks at a registry; what is closed is read once.

    Args:
        registry: Of the box.
    """

    registry: Registry
    _closed: dict[tuple[int, int], Json] = field(default_factory=dict)

    def look(self) -> Json:
        """Return the fleet as JSON holds it.

        Returns:
            ``devices`` with name, release (-1: none), digest of what each serves, macro_f1 of that
            release on its own held-out windows or ``None``; ``rounds`` that made a release, with
            number, accepted, refused, seconds, bytes_up and bytes_down; ``release`` with number and
            digest of the fleet's, or ``None``; ``evaluated``: whether it has been judged; ``open``:
            number, asked and accepted of the open round, or ``None``; ``doing`` of the service.
        """
        current = self.registry.releases.current()
        judged: dict[int, Json] = {}
        devices = [
            {
                "name": device.name,
                "release": device.serves_release,
                "digest": device.serves,
                "macro_f1": self._score(device.name, device.serves_release, judged),
            }
            for device in self.registry.devices.all()
        ]
        found, beat = self.registry.open_round(), self.registry.observations.heartbeat()
        number = current.number if current else 0
        return {
            "devices": devices,
            "rounds": self._rounds(),
            "release": {"number": number, "digest": current.digest} if current else None,
            "evaluated": bool(self._evaluation(number, judged)),
            "open": found
            and {
                "number": found.row.round,
                "asked": len(found.row.selected),
                "accepted": len(found.updates),
            },
            "doing": dict(beat.doing) if beat else {},
        }

    def _rounds(self) -> list[Json]:
        rows = [row for row in self.registry.rounds.all() if row.state is RoundState.released]
        return [self._round(row) for row in rows]

    def _round(self, row: RoundRow) -> Json:
        key = row.round, row.attempt
        if key not in self._closed:
            assert row.closed is not None
            refused = self.registry.rounds.refusals(*key)
            self._closed[key] = {
                "number": row.round,
                "accepted": len(self.registry.rounds.updates(*key)),
                "refused": sum(not each.earlier for each in refused),
                "seconds": round(row.closed.at_s - row.opened.at_s, 3),
                "bytes_up": int(row.traffic.get("bytes_up", 0)),
                "bytes_down": int(row.traffic.get("bytes_down", 0)),
            }
        return self._closed[key]

    def _evaluation(self, release: int, judged: dict[int, Json]) -> Json:
        if release not in judged:
            # Of the base itself there is none, and of a number below that no release either.
            found = self.registry.observations.evaluation(release) if release > 0 else {}
            judged[release] = found
        return judged[release]

    def _score(self, device: str, release: int, judged: dict[int, Json]) -> float | None:
        counts = self._evaluation(release, judged).get(device)
        if counts is None:
            return None
        score = macro_f1_present(np.array(counts, np.int64))
        return None if math.isnan(score) else round(score, 6)


def is_done(seen: Json, rounds: int, devices: int) -> bool:
    """Tell whether every device serves the last of so many rounds' release, and it was judged.

    Args:
        seen: What :meth:`Looker.look` returned.
        rounds: How many were wanted.
        devices: How many there are.
    """
    if not rounds or seen["release"] is None or len(seen["rounds"]) < rounds:
        return False
    last = seen["release"]["number"]
    serve = [each["release"] == last and each["digest"] for each in seen["devices"]]
    same = len({each["digest"] for each in seen["devices"]}) == 1
    return len(serve) == devices and all(serve) and same and bool(seen["evaluated"])
