from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from clients import bridge
from clients.bridge import LONGEST_CALL_S, RESERVE_S, SHORTEST_CALL_S, call_limit
from clients.link.records import Answer, Declined, Metrics, Request
from fleet.errors import RoundError
from fleet.federate.wire import Payload
from server.flower import become_task
from server.messages import confusion_of, content_of, payload_of
from tests.clients.link.agent_process import Serve, started
from tests.clients.link.sockets import agent, folder, socket

__all__ = ["agent", "folder", "socket"]

EMPTY = np.zeros(0, np.float32)
PLAN = Payload(np.arange(4, dtype=np.float32), {"format": 1, "plan": "{}"})


def ask(kind: str, content: RecordDict, socket: Path, ttl: float = 60.0) -> RecordDict:
    become_task()
    message = Message(content, 7, kind, ttl=ttl, group_id="1")
    node: dict[str, Any] = {"device": "device-1", "agent-socket": str(socket)}
    return bridge.app(message, Context(1, 7, node, RecordDict(), {})).content


def config_of(content: RecordDict) -> dict[str, Any]:
    assert set(content) == {"config"}
    return dict(content.config_records["config"])


def test_a_plan_goes_to_the_agent_and_its_update_comes_back(socket: Path, agent: Serve) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return Payload(request.payload.array * 2, {"plan": "abc", "examples": 5, "loss": 0.5})

    agent(answer)
    update = payload_of(ask("train", content_of(PLAN), socket))
    assert (update.array.dtype, update.array.tolist()) == (np.float32, [0, 2, 4, 6])
    assert update.config == {"plan": "abc", "examples": 5, "loss": 0.5}
    (request,) = seen
    assert (request.kind, dict(request.payload.config)) == ("train", dict(PLAN.config))
    assert request.payload.array.tolist() == PLAN.array.tolist()
    assert 0 < request.limit_s <= 60.0 - RESERVE_S


def test_an_evaluation_comes_back_as_counts(socket: Path, agent: Serve) -> None:
    agent(lambda request: Metrics({"num-examples": 3, "confusion": [1, 0, 0, 2]}))
    content = ask("evaluate", content_of(PLAN), socket)
    assert set(content) == {"metrics"}
    counts = confusion_of(content, 2)
    assert counts is not None
    assert counts.tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize("kind", ["query.status", "query.release"])
def test_a_query_is_answered_with_the_agents_config(socket: Path, agent: Serve, kind: str) -> None:
    status = {"device": "device-1", "train_windows": 4, "test_windows": 2, "reason": ""}
    agent(lambda request: Payload(EMPTY, {**status, "kind": request.kind}))
    assert config_of(ask(kind, RecordDict(), socket)) == {**status, "kind": kind}


def test_what_a_query_carries_reaches_the_agent(socket: Path, agent: Serve) -> None:
    agent(lambda request: Payload(EMPTY, dict(request.payload.config)))
    content = RecordDict({"config": ConfigRecord({"release": 3, "digest": "ab"})})
    assert config_of(ask("query.release", content, socket)) == {"release": 3, "digest": "ab"}


def test_an_agent_that_declines_is_heard_by_the_server(socket: Path, agent: Serve) -> None:
    def answer(request: Request) -> Answer:
        if request.kind == "evaluate":
            raise RoundError("too-hot", "the device has 91 °C")
        return Declined("no-new-labels", "0 labels since round 2")

    agent(answer)
    declined = config_of(ask("train", content_of(PLAN), socket))
    assert declined == {
        "format": 1,
        "declined": "no-new-labels",
        "detail": "0 labels since round 2",
    }
    assert config_of(ask("evaluate", content_of(PLAN), socket))["declined"] == "too-hot"


def test_a_plan_without_a_config_never_reaches_the_agent(socket: Path, agent: Serve) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return request.payload

    agent(answer)
    assert config_of(ask("train", RecordDict(), socket))["declined"] == "malformed"
    assert seen == []


def test_a_plan_that_the_link_cannot_carry_is_declined(socket: Path, agent: Serve) -> None:
    agent(lambda request: request.payload)
    content = content_of(PLAN)
    content["arrays"] = ArrayRecord({"packed": bridge.Array(np.zeros(2))})
    assert config_of(ask("train", content, socket))["declined"] == "link-unsayable"


def test_a_device_whose_agent_is_away_says_so(socket: Path) -> None:
    config = config_of(ask("train", content_of(PLAN), socket, ttl=SHORTEST_CALL_S))
    assert config["declined"] == "agent-away"
    assert config["detail"].startswith("not now, because no agent answered")


def test_a_device_whose_agent_hangs_says_so(socket: Path) -> None:
    with started(socket, "hang"):
        config = config_of(ask("query.status", RecordDict(), socket, ttl=SHORTEST_CALL_S))
    assert config["declined"] == "agent-busy"
    assert "did not answer within 1.0 s" in config["detail"]


@pytest.mark.parametrize(
    ("age_s", "ttl", "limit_s"),
    [
        (10.0, 600.0, 590.0 - RESERVE_S),
        (0.0, 600.0, 600.0 - RESERVE_S),
        (-3600.0, 600.0, 600.0 - RESERVE_S),  # the server's clock is ahead
        (3600.0, 600.0, SHORTEST_CALL_S),  # or behind
        (599.0, 600.0, SHORTEST_CALL_S),
        (0.0, 1e9, LONGEST_CALL_S),
    ],
)
def test_an_agent_has_what_is_left_of_a_messages_life(
    age_s: float, ttl: float, limit_s: float
) -> None:
    now = time.time()
    assert call_limit(now - age_s, ttl, now) == pytest.approx(limit_s)
