from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fleet.errors import FleetError, InputError, RoundError, StorageError
from server.control import requests as r
from server.control import service
from server.control.certificates import identity_of, issue
from server.control.errors import AccessError, LateError
from server.control.messages import encode_request
from server.control.remote import RemoteVerbs, Trust
from server.control.roles import Role
from server.control.seam import Answer
from server.control.service import Server, status_of
from server.control.table import VERBS, Verb
from server.control.transport import (
    CHANNEL_OPTIONS,
    LARGEST_REQUEST_BYTES,
    SERVICE,
    path_of,
)
from server.control.verbs.fleet import Fleet
from server.service.authority import Pair
from tests.server.control.controlling import (
    AUTHORITY,
    NOW,
    SERVER,
    STRANGER,
    Held,
    known,
    remote,
    trust,
)
from tests.server.control.test_proto import smallest
from tests.server.registry.filled import Clock

As = Callable[..., RemoteVerbs]


@pytest.fixture
def asking(fleet: Fleet, server: Server) -> Iterator[As]:
    """Ask the server with a certificate; closed at the end."""
    made: list[RemoteVerbs] = []

    def asking(own: Trust) -> RemoteVerbs:
        known(fleet, own)
        made.append(RemoteVerbs(f"127.0.0.1:{server.port}", own, wait=lambda _: None))
        return made[-1]

    yield asking
    for each in made:
        each.close()


@pytest.fixture
def raw(fleet: Fleet, server: Server) -> Iterator[Any]:
    """A channel with an admin's certificate."""
    own = known(fleet, trust(Role.admin))
    credentials = grpc.ssl_channel_credentials(own.root, own.own.key, own.own.certificate)
    address = f"127.0.0.1:{server.port}"
    with grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS) as channel:
        yield channel


def test_every_method_has_a_role_and_whoever_only_views_changes_nothing() -> None:
    assert set(VERBS) == set(r.REQUESTS)
    for name, verb in VERBS.items():
        assert isinstance(verb.role, Role)
        assert not (r.REQUESTS[name].changes and Role.viewer.allows(verb.role)), name
    admins = {name for name, verb in VERBS.items() if verb.role is Role.admin}
    assert admins == {
        *("BaseInstall", "DeviceEnroll", "DeviceRevoke"),
        *("OperatorRevoke", "RegistryBackup", "ReleaseWithdraw"),
    }


@pytest.mark.parametrize("role", list(Role))
def test_a_role_may_ask_for_what_the_table_allows_and_for_nothing_else(
    asking: As, fleet: Fleet, role: Role
) -> None:
    verbs = asking(trust(role))
    head = fleet.registry.audit.head()
    for name, verb in VERBS.items():
        if role.allows(verb.role):
            continue
        with pytest.raises(FleetError) as refused:
            verbs.ask(smallest(name))
        assert (refused.value.code, refused.value.exit_code) == ("role-needed", 2), name
    assert fleet.registry.audit.head() == head
    assert verbs.ask(r.RoundList()).data["rounds"]


def test_the_actor_is_the_name_on_the_certificate(asking: As, fleet: Fleet) -> None:
    asking(trust(Role.operator, "bea")).ask(r.DeviceQuarantine(key="k", device="ada", why="noise"))
    last = fleet.registry.audit.rows(newest=1)[0]
    assert (last.actor, last.verb, last.subject) == ("bea", "device.quarantine", "ada")


@pytest.mark.parametrize(
    "own",
    [
        Trust(issue(STRANGER, "eve", Role.admin, NOW), AUTHORITY.certificate),
        Trust(Pair(issue(STRANGER, "eve", Role.admin, NOW).certificate, SERVER.key), b""),
    ],
    ids=["another authority", "no key of its own"],
)
def test_a_certificate_of_another_authority_is_refused(asking: As, own: Trust) -> None:
    verbs = asking(replace(own, root=AUTHORITY.certificate))
    with pytest.raises(AccessError) as refused:
        verbs.ask(r.DeviceList())
    assert (refused.value.code, refused.value.exit_code) == ("control-away", 2)


def test_without_a_certificate_nobody_comes_in(server: Server) -> None:
    credentials = grpc.ssl_channel_credentials(AUTHORITY.certificate)
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
        ask = channel.unary_unary(path_of("DeviceList"))
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_does_not_trust_a_server_of_another_authority(asking: As) -> None:
    verbs = asking(Trust(issue(AUTHORITY, "anna", Role.admin, NOW), STRANGER.certificate))
    with pytest.raises(AccessError):
        verbs.ask(r.DeviceList())


def test_a_certificate_that_names_no_role_has_none() -> None:
    with pytest.raises(AccessError) as refused:
        identity_of(SERVER.certificate, NOW)
    assert refused.value.code == "no-role"
    with pytest.raises(AccessError):
        identity_of(b"no certificate", NOW)


def test_an_expired_certificate_is_refused_also_on_a_connection_that_is_open(
    asking: As, clock: Clock
) -> None:
    verbs = asking(trust(Role.viewer))
    assert verbs.ask(r.DeviceList()).data
    clock.now_s = (NOW + timedelta(days=91)).timestamp()
    with pytest.raises(FleetError) as refused:
        verbs.ask(r.DeviceList())
    assert refused.value.code == "certificate-expired"


@pytest.mark.parametrize("name", ["", " anna", "a" * 65, "an\nna"])
def test_an_operator_has_a_name_that_the_audit_can_keep(name: str) -> None:
    with pytest.raises(InputError):
        issue(AUTHORITY, name, Role.viewer, NOW)


def test_the_same_key_twice_is_done_once(admin: RemoteVerbs, fleet: Fleet) -> None:
    asked = r.DeviceTag(key="once", device="bob", add=("attic",))
    before = fleet.registry.audit.head().seq
    first, second = admin.ask(asked), admin.ask(asked)
    assert first == second
    assert fleet.registry.audit.head().seq == before + 1
    with pytest.raises(FleetError) as refused:
        admin.ask(asked.model_copy(update={"add": ("cellar",)}))
    assert refused.value.code == "key-reused"


def test_a_call_without_a_deadline_has_one(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> None:
    held, own = Held(), known(fleet, trust(Role.viewer))
    monkeypatch.setitem(service.VERBS, "DeviceList", Verb(Role.viewer, held, limit_s=0.05))
    credentials = grpc.ssl_channel_credentials(own.root, own.own.key, own.own.certificate)
    with service.serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate) as server:
        with (
            grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel,
            pytest.raises(grpc.RpcError) as late,
        ):
            channel.unary_unary(path_of("DeviceList"))(b"")
        held.go_on.set()
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b"control-late" in dict(late.value.trailing_metadata())["corefleet-error-bin"]


def test_a_caller_that_gives_up_early_hears_that_it_may_still_be_done(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    held = Held()
    monkeypatch.setitem(service.VERBS, "DeviceList", Verb(Role.viewer, held))
    monkeypatch.setattr("server.control.remote.verb_of", lambda _: Verb(Role.viewer, held, 0.3))
    with service.serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate) as server:
        with (
            RemoteVerbs(f"127.0.0.1:{server.port}", known(fleet, trust(Role.viewer))) as verbs,
            pytest.raises(FleetError) as late,
        ):
            verbs.ask(r.DeviceList())
        held.go_on.set()
    assert (late.value.code, late.value.exit_code) == ("control-late", 3)


def test_more_requests_than_can_be_at_work_are_refused(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    held = Held()
    monkeypatch.setattr(service, "MOST_CALLS", 1)
    monkeypatch.setitem(service.VERBS, "DeviceList", Verb(Role.viewer, held))
    with (
        service.serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate) as server,
        RemoteVerbs(f"127.0.0.1:{server.port}", known(fleet, trust(Role.viewer))) as verbs,
    ):
        first = threading.Thread(target=verbs.ask, args=(r.DeviceList(),))
        first.start()
        assert held.began.wait(30)
        with pytest.raises(FleetError) as refused:
            verbs.ask(r.RoundList())
        held.go_on.set()
        first.join(30)
        assert refused.value.code == "busy"
        assert verbs.ask(r.RoundList()).data["rounds"]


def test_an_oversized_request_is_refused_on_both_sides(admin: RemoteVerbs, raw: Any) -> None:
    many = ("d" * 1000,) * 200
    with pytest.raises(FleetError) as refused:
        admin.ask(r.RoundReplay(round=1, without=many))
    assert refused.value.code == "request-too-large"
    ask = raw.unary_unary(path_of("DeviceList"))
    with pytest.raises(grpc.RpcError) as told:
        ask(b"\x0a" + b"x" * (LARGEST_REQUEST_BYTES + 2000), timeout=30)
    assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_oversized_answer_is_an_error_that_says_what_to_ask_for(
    monkeypatch: pytest.MonkeyPatch, admin: RemoteVerbs
) -> None:
    monkeypatch.setattr(service, "LARGEST_ANSWER_BYTES", 100)
    with pytest.raises(FleetError) as refused:
        admin.ask(r.RoundList())
    assert refused.value.code == "answer-too-large"


@pytest.mark.parametrize("data", [b"\xff\xff", b""])
def test_a_request_that_cannot_be_read_is_told_with_its_envelope(raw: Any, data: bytes) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw.unary_unary(path_of("DeviceShow"))(data, timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailer = dict(refused.value.trailing_metadata())
    assert b'"bad-request"' in trailer["corefleet-error-bin"]


def test_a_failure_of_the_server_is_exit_5_and_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(fleet: Fleet, actor: str, asked: object) -> Answer:
        raise ZeroDivisionError("secret")

    monkeypatch.setitem(service.VERBS, "DeviceList", Verb(Role.viewer, failing))
    with remote(fleet, trust(Role.viewer)) as verbs, pytest.raises(FleetError) as told:
        verbs.ask(r.DeviceList())
    assert (told.value.code, told.value.exit_code) == ("bug", 5)
    assert "secret" not in told.value.message
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("no-such-device", ""), "NOT_FOUND"),
        (InputError("bad-name", ""), "INVALID_ARGUMENT"),
        (RoundError("round-open", ""), "FAILED_PRECONDITION"),
        (StorageError("disk-full", ""), "INTERNAL"),
        (AccessError("no-role", ""), "PERMISSION_DENIED"),
        (LateError("control-late", ""), "DEADLINE_EXCEEDED"),
        (FleetError("busy", ""), "RESOURCE_EXHAUSTED"),
    ],
)
def test_every_kind_of_error_has_its_status(error: FleetError, status: str) -> None:
    assert status_of(error).name == status


def test_health_is_told_and_ends_with_the_server(raw: Any, server: Server) -> None:
    check = health_pb2_grpc.HealthStub(raw).Check
    asked = health_pb2.HealthCheckRequest(service=SERVICE)
    assert check(asked, timeout=30).status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_tells_the_methods(raw: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(raw)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (told,) = stub.ServerReflectionInfo(iter([asked]), timeout=30)
    assert SERVICE in {each.name for each in told.list_services_response.service}


def test_two_servers_cannot_have_one_port(fleet: Fleet, server: Server) -> None:
    with pytest.raises(FleetError) as refused:
        service.serve(fleet, f"127.0.0.1:{server.port}", SERVER, AUTHORITY.certificate)
    assert refused.value.code == "address-taken"


def test_a_lost_connection_is_told_as_such(server: Server, asking: As) -> None:
    verbs = asking(trust(Role.viewer))
    server.close(0)
    with pytest.raises(AccessError) as away:
        verbs.ask(r.DeviceList())
    assert (away.value.code, away.value.exit_code) == ("control-away", 2)


def test_a_request_goes_to_the_wire_without_the_actor() -> None:
    data = encode_request(r.DeviceRevoke(key="k", device="ada", why="lost"))
    assert b"anna" not in data
