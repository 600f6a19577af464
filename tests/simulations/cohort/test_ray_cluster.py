from __future__ import annotations

import contextlib
import socket
import time

import pytest
import ray

from fleet.errors import FleetError, InputError, UnavailableError
from simulations.cohort import ray_cluster
from simulations.cohort.ray_cluster import ADDRESS_ENVIRONMENT, RayCluster


def failure_at(address: str) -> FleetError:
    started = time.monotonic()
    with pytest.raises(FleetError) as caught:
        RayCluster(address, 1)
    assert time.monotonic() - started < ray_cluster.CONNECT_TIMEOUT_S + 5
    assert not ray.is_initialized()
    return caught.value


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with contextlib.closing(socket.socket()) as bound:
        # Bound and not listening: nobody else can take the port meanwhile.
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        error = failure_at(address)
    assert isinstance(error, UnavailableError)
    assert error.code == "ray-unreachable"
    assert address in error.message
    assert "ray start --head" in error.hint


def test_a_server_that_never_answers_is_left_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_cluster, "CONNECT_TIMEOUT_S", 0.5)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setenv(ADDRESS_ENVIRONMENT, f"127.0.0.1:{silent.getsockname()[1]}")
        error = failure_at("")
    assert error.code == "ray-unreachable"
    assert "no answer within 0.5 s" in error.message


@pytest.mark.parametrize("address", ["127.0.0.1", "head:port", "ray://head:10001", ":6379"])
def test_what_is_no_address_is_told(address: str) -> None:
    error = failure_at(address)
    assert isinstance(error, InputError)
    assert error.code == "ray-address"
