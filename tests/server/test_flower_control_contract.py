"""What the operator's commands rely on of Flower's Control API and its private names."""

from __future__ import annotations

import inspect
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest
from flwr.common.constant import Status, SubStatus
from flwr.proto.control_pb2 import (
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StopRunRequest,
    StopRunResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.retry import http_retry

from fleet.errors import InputError
from server import flower_control
from server.flower_control import Control, UnreachableError, control_of, public_key_of
from server.service.authority import make_authority

pytestmark = pytest.mark.contract
P384 = b"ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBKfKxnot-a-point a"


def control(answer: httpx.Response | httpx.TransportError) -> tuple[Control, list[httpx.Request]]:
    """A control whose SuperLink always answers the same."""
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, httpx.TransportError):
            raise answer
        return answer

    client = ControlHttpClient("https://superlink")
    client._client.close()
    client._client = httpx.Client(transport=httpx.MockTransport(respond))
    return Control(client), seen


def ok(message: object) -> httpx.Response:
    return httpx.Response(200, content=message.SerializeToString())  # type: ignore[attr-defined]


def test_nodes_are_listed_with_their_states_oldest_first() -> None:
    nodes = [
        NodeInfo(node_id=2, name="b", status=NodeStatus.ONLINE, registered_at="2026-02"),
        NodeInfo(node_id=1, name="a", status=NodeStatus.UNREGISTERED, registered_at="2026-01"),
        NodeInfo(node_id=3, status=NodeStatus.REGISTERED, registered_at="2026-03"),
        NodeInfo(
            node_id=4,
            status=NodeStatus.OFFLINE,
            registered_at="2026-04",
            last_activated_at="2026-05",
            last_deactivated_at="2026-06",
        ),
    ]
    found, seen = control(ok(ListNodesResponse(nodes_info=nodes)))
    listed = found.nodes()
    assert [node.state for node in listed] == ["revoked", "online", "enrolled", "offline"]
    assert [node.seen_at for node in listed] == ["", "", "", "2026-06"]
    assert seen[0].url.path == "/v1/control/list-nodes"


def test_a_device_is_enrolled_by_name_and_key() -> None:
    found, seen = control(ok(RegisterNodeResponse(node_id=7)))
    assert found.enroll(b"pem", "kitchen-1") == 7
    sent = RegisterNodeRequest.FromString(seen[0].content)
    assert (sent.public_key, sent.name) == (b"pem", "kitchen-1")
    assert seen[0].url.path == "/v1/control/register-node"


def a_run(number: int, status: str, how: str = "", registry: str = "r.sqlite") -> Run:
    config = {"registry": Scalar(string=registry), "rounds": Scalar(sint64=3)}
    told = RunStatus(status=status, sub_status=how)
    return Run(run_id=number, status=told, override_config=config)


def test_a_run_stands_as_flower_says() -> None:
    over = a_run(7, Status.FINISHED, SubStatus.FAILED)
    found, seen = control(ok(ListRunsResponse(run_dict={7: over, 8: a_run(8, Status.RUNNING)})))
    assert found.run_state(7) == "finished:failed"
    assert found.run_state(8) == "running"
    assert ListRunsRequest.FromString(seen[0].content).run_id == 7
    assert seen[0].url.path == "/v1/control/list-runs"
    with pytest.raises(UnreachableError) as caught:
        found.run_state(9)
    assert caught.value.code == "superlink-refused"


def test_runs_of_a_registry_that_have_not_finished_are_found_and_stopped() -> None:
    runs = [
        a_run(1, Status.FINISHED, SubStatus.STOPPED),
        a_run(2, Status.PENDING),
        a_run(3, Status.RUNNING, registry="other.sqlite"),
        a_run(4, Status.RUNNING),
        Run(run_id=5, status=RunStatus(status=Status.RUNNING)),
    ]
    found, _ = control(ok(ListRunsResponse(run_dict={run.run_id: run for run in runs})))
    assert found.runs_with("registry", "r.sqlite") == [2, 4]
    found, seen = control(ok(StopRunResponse(success=True)))
    found.stop_run(4)
    assert StopRunRequest.FromString(seen[0].content).run_id == 4
    assert seen[0].url.path == "/v1/control/stop-run"


def test_what_a_superlink_refuses_is_told_in_its_words() -> None:
    told = {"code": 24, "detail": "Node ID not found for account."}
    found, seen = control(httpx.Response(404, json=told))
    with pytest.raises(UnreachableError, match="Node ID not found") as caught:
        found.revoke(5)
    assert (caught.value.code, caught.value.exit_code) == ("superlink-refused", 2)
    assert seen[0].url.path == "/v1/control/unregister-node"
    with pytest.raises(UnreachableError, match="HTTP status 500"):
        control(httpx.Response(500, text="<html>"))[0].nodes()


def test_a_superlink_that_is_away_is_told_with_the_next_step() -> None:
    with pytest.raises(UnreachableError, match="ConnectError") as caught:
        control(httpx.ConnectError("refused"))[0].nodes()
    assert "fleet server up" in caught.value.hint


def test_a_control_has_the_client_that_we_replace_and_asks_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:1")
    (tmp_path / "ca.crt").write_bytes(make_authority(datetime.now(timezone.utc)).certificate)
    assert "_client" in inspect.getsource(ProtobufClient.__init__)
    with control_of("127.0.0.1:1", tmp_path / "ca.crt") as found:
        assert found._client._client._mounts == {}
        with pytest.raises(UnreachableError, match="ConnectError"):
            found.nodes()


def test_flower_tries_again_after_what_the_front_answers_when_it_is_busy() -> None:
    assert {502, 503} <= set(http_retry._RETRYABLE_STATUS_CODES)


@pytest.mark.parametrize("line", [b"", b"x", b"ssh-rsa AAAA", P384])
def test_what_is_no_key_of_a_device_is_refused(line: bytes) -> None:
    with pytest.raises(InputError, match="no public key of a device"):
        public_key_of(line)


def test_every_state_of_a_node_has_a_word_of_ours() -> None:
    ours = {
        value
        for name, value in vars(NodeStatus).items()
        if not name.startswith("_") and isinstance(value, str)
    }
    assert set(flower_control.STATES) == ours
