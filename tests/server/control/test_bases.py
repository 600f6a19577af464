"""Bases on a server: installed once, listed, and what a policy may name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.adapt.base import Base
from fleet.errors import FleetError, StorageError
from server.control import requests as r
from server.control.remote import RemoteVerbs
from server.control.transport import LARGEST_REQUEST_BYTES
from server.control.verbs.fleet import Fleet
from server.control.waiting import closed_round
from server.registry.orders import Verb
from tests.server.control.controlling import ask, local
from tests.server.registry.filled import BASE, Clock


def test_a_base_is_installed_once_with_a_row_of_the_audit(
    fleet: Fleet, tiny_base: Base, tiny_base_file: Path
) -> None:
    content, head = tiny_base_file.read_bytes(), fleet.registry.audit.head().seq
    told = ask(fleet, r.BaseInstall(key="k1", content=content))["base"]
    assert (told["digest"], told["used_by_policy"]) == (tiny_base.digest, False)
    assert fleet.registry.bases.content(tiny_base.digest) == content
    (row,) = fleet.registry.audit.rows(newest=1)
    assert (row.actor, row.verb, row.subject) == ("anna", "base.install", tiny_base.digest)
    assert ask(fleet, r.BaseInstall(key="k2", content=content))["base"] == told
    assert fleet.registry.audit.head().seq == head + 1


def test_what_is_no_whole_base_is_refused_without_naming_a_file_of_the_server(
    fleet: Fleet, tiny_base_file: Path
) -> None:
    head = fleet.registry.audit.head()
    for content in (b"noise", tiny_base_file.read_bytes()[:-1]):
        with pytest.raises(
            StorageError, match=r"^the file is no whole safetensors file"
        ) as refused:
            ask(fleet, r.BaseInstall(key="k", content=content))
        assert refused.value.code == "bundle-damaged"
    assert fleet.registry.audit.head() == head


def test_a_base_above_the_limit_is_no_request() -> None:
    with pytest.raises(FleetError) as refused:
        r.BaseInstall(key="k", content=bytes(r.LARGEST_BASE + 1))
    assert refused.value.code == "bad-request"
    assert str(r.LARGEST_BASE) in refused.value.message


def test_a_base_larger_than_any_other_request_comes_over_the_wire_to_be_judged(
    admin: RemoteVerbs,
) -> None:
    for size in (LARGEST_REQUEST_BYTES + 1, r.LARGEST_BASE):
        with pytest.raises(FleetError) as refused:
            admin.ask(r.BaseInstall(key="k", content=bytes(size)))
        assert refused.value.code == "bundle-damaged", size


def test_bases_are_listed_with_what_they_are_and_whether_the_policy_names_them(
    fleet: Fleet, tiny_base: Base, tiny_base_file: Path, clock: Clock
) -> None:
    clock.now_s += 1
    ask(fleet, r.BaseInstall(key="k1", content=tiny_base_file.read_bytes()))
    ask(fleet, r.PolicySet(key="k2", policy=json.dumps({"base": tiny_base.digest})))
    broken, mine = ask(fleet, r.BaseList())["bases"]
    assert (broken["digest"], broken["used_by_policy"]) == (BASE.digest, False)
    assert broken["problem"]
    assert (mine["digest"], mine["used_by_policy"], mine["problem"]) == (tiny_base.digest, True, "")
    assert mine["classes"] == list(tiny_base.record.labels)
    assert mine["model"] == tiny_base.record.model.name
    assert mine["trained_on"] == tiny_base.record.trained_on


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_policy_for_a_base_that_is_not_installed_is_refused_with_the_next_step(
    fleet: Fleet, dry_run: bool
) -> None:
    policy = json.dumps({"base": "c" * 64})
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.PolicySet(key="k", policy=policy, dry_run=dry_run))
    assert refused.value.code == "base-not-installed"
    assert "fleet base install FILE" in refused.value.hint
    assert fleet.registry.policy.newest() is None


@pytest.mark.parametrize("base", [BASE.digest[:16], "base.safetensors"])
def test_a_prefix_or_a_file_for_a_base_is_told_where_the_digest_is(fleet: Fleet, base: str) -> None:
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.PolicySet(key="k", policy=json.dumps({"base": base})))
    assert refused.value.code == "bad-policy"
    assert "the full digest: fleet base show FILE --format json" in refused.value.hint
    told = f"base: 64 hex digits, the base's digest (`fleet base list`), not {base!r}"
    assert told in refused.value.message


def failed(fleet: Fleet, why: str = "the base is not installed") -> int:
    order = fleet.registry.orders.place(Verb.start_round, {}, actor="anna")
    fleet.registry.orders.finish(order.id, error=why, actor="service")
    return order.id


@pytest.mark.parametrize("number", [None, 3])
def test_a_wait_ends_at_once_with_the_error_of_the_order_that_failed(
    fleet: Fleet, number: int | None
) -> None:
    order = failed(fleet)
    with pytest.raises(FleetError) as told:
        closed_round(local(fleet), number, 10.0)
    assert (told.value.code, told.value.exit_code) == ("order-failed", 1)
    assert f"order {order} failed: the base is not installed" in told.value.message


def test_a_wait_hears_of_an_order_that_fails_meanwhile(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = fleet.registry.orders.place(Verb.start_round, {}, actor="anna")
    verbs = local(fleet)
    watch: Callable[..., object] = verbs.watch

    def late(after: int | None, limit_s: float) -> object:
        fleet.registry.orders.finish(order.id, error="too few", actor="service")
        return watch(after, limit_s)

    monkeypatch.setattr(verbs, "watch", late)
    with pytest.raises(FleetError) as told:
        closed_round(verbs, None, 10.0)
    assert told.value.code == "order-failed"


def test_an_order_that_failed_before_the_last_round_closed_is_no_news(
    fleet: Fleet, clock: Clock
) -> None:
    from fleet.federate.releases import Release
    from tests.server.registry.filled import opened

    start: Release = fleet.registry.releases.load(2)
    failed(fleet)
    assert ask(fleet, r.RoundList())["order"]["stands"] is True
    clock.now_s += 1
    opened(fleet.registry, start, 3)
    assert ask(fleet, r.RoundList())["order"]["stands"] is False
    failed(fleet, "a round is open already")
    assert ask(fleet, r.RoundList())["order"]["stands"] is False
    clock.now_s += 1
    fleet.registry.rounds.abandon(3, why="stuck", actor="c")
    assert ask(fleet, r.RoundShow())["order"]["stands"] is False
    clock.now_s += 1
    failed(fleet)
    assert ask(fleet, r.RoundShow())["order"]["stands"] is True


def test_a_round_that_there_is_not_tells_of_the_order_that_failed(fleet: Fleet) -> None:
    order = failed(fleet)
    with pytest.raises(FleetError) as told:
        ask(fleet, r.RoundShow(round=3))
    assert told.value.code == "no-such-round"
    ending = f"; order {order} for one failed: the base is not installed"
    assert told.value.message.endswith(ending)
