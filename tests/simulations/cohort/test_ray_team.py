"""The team without a cluster: what it does where Ray says nothing any more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.exceptions import GetTimeoutError

from fleet.federate.wire import Payload
from simulations.cohort import ray_team
from simulations.cohort.fleet import EngineLost
from simulations.cohort.ray_team import CHUNK_TIMEOUT_S, START_TIMEOUT_S, TRIES, Team


class Silent:
    """A Ray whose actors are ready and whose answers are there, but cannot be fetched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timeouts: list[float | None] = []
        self.killed = 0
        self._asked: list[tuple[str, ...]] = []
        patched = {name: getattr(self, name) for name in ("remote", "put", "wait", "get", "kill")}
        for name, double in patched.items():
            monkeypatch.setattr(ray_team.ray, name, double)
        monkeypatch.setattr(ray_team.ray, "nodes", lambda: [{"NodeID": "n", "Alive": True}])
        monkeypatch.setattr(ray_team, "software", dict)

    def remote(self, **options: object) -> Any:
        return lambda kind: self.Kind(self)

    def put(self, value: object) -> str:
        return "put"

    def wait(self, references: list[Any], **options: object) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        self.timeouts.append(timeout)
        if reference[0] == "prepare":
            return {"node": "here", "node_id": "n", "software": {}}
        raise GetTimeoutError("nothing came")

    def kill(self, handle: object) -> None:
        self.killed += 1

    class Kind:
        """What ``ray.remote`` makes of a class, its actors, and their methods."""

        def __init__(self, ray: Silent, name: str = "") -> None:
            self._ray, self._name = ray, name

        def __getattr__(self, name: str) -> Any:
            return Silent.Kind(self._ray, name)

        def remote(self, *arguments: object) -> Any:
            return (self._name, object()) if self._name else Silent.Kind(self._ray)


def test_an_answer_that_cannot_be_fetched_in_time_is_a_lost_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = Silent(monkeypatch)
    team = Team(None, b"", lambda: 1)  # type: ignore[arg-type]
    with pytest.raises(EngineLost, match=f"lost with {TRIES} workers") as caught:
        team.answer("train", Payload(np.zeros(1, np.float32), {}), [[0, 1]])
    assert caught.value.code == "ray-chunk"
    assert silent.killed == TRIES
    limits = [timeout or 0.0 for timeout in silent.timeouts]
    assert all(0 < limit <= max(CHUNK_TIMEOUT_S, START_TIMEOUT_S) for limit in limits)
