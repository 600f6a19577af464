"""The verb by which the fleet moves to another base: looked at first, ordered once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.adapt.base import Base
from fleet.errors import FleetError
from server.control import requests as r
from server.control.errors import LateError
from server.control.roles import Role
from server.control.verbs.fleet import Fleet
from server.control.waiting import finished_order, last_row
from server.registry import Registry
from server.standing.moving import Moves
from server.standing.planning import Bench
from server.standing.world import World
from tests.server.control.controlling import ask, beats, fleet_of, local, remote, trust
from tests.server.control.rebasing import GROWN, NEW, OLD, OTHER, STATE, moving_registry
from tests.server.registry.filled import OPERATOR, Clock


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Fleet]:
    clock = Clock()
    with moving_registry(tmp_path / "registry.sqlite", clock) as registry:
        yield fleet_of(registry, clock, tmp_path)


def rebase(base: Base, **values: Any) -> r.ReleaseRebase:
    return r.ReleaseRebase(**{"key": "k", "base": base.digest, **values})


def done(registry: Registry) -> None:
    """Carry out the orders that wait, as the service does."""
    world = World(say=lambda event, **values: None)
    for order in registry.orders.waiting():
        taken = registry.orders.take(order.id, actor="service")
        result = Moves(registry, Bench(registry), world).rebase(taken)
        registry.orders.finish(taken.id, result, actor="service")


def test_a_dry_run_tells_what_the_release_would_be_and_changes_nothing(moving: Fleet) -> None:
    head = moving.registry.audit.head()
    told = ask(moving, rebase(NEW, dry_run=True))
    assert told["touches"]["devices"] == ["ada", "bob", "cyd"]
    assert told["touches"]["releases"] == [0, 1]
    assert (told["kind"], told["new_labels"]) == ("rebased", [])
    assert (told["from_release"], told["from_base"]) == (0, OLD.digest)
    assert told["difference"] <= 1e-5
    assert "order" not in told
    assert moving.registry.audit.head() == head
    grown = ask(moving, rebase(GROWN, dry_run=True))
    assert (grown["kind"], grown["new_labels"], grown["difference"]) == ("grown", ["stairs"], 0.0)


def test_a_rebase_is_one_order_however_often_it_is_asked_with_its_key(moving: Fleet) -> None:
    told = ask(moving, rebase(NEW, why="frames exhausted", hold=True))
    assert ask(moving, rebase(NEW, why="frames exhausted", hold=True))["order"] == told["order"]
    (order,) = moving.registry.orders.waiting()
    assert (order.verb.value, order.actor) == ("rebase", "anna")
    assert order.args == {
        "base": NEW.digest,
        "method": "",
        "hold": True,
        "another_network": False,
        "why": "frames exhausted",
    }
    assert told["order"] == {"id": order.id, "verb": "rebase", "state": "waiting"}
    assert told["touches"]["devices"] == []
    assert told["service"] == "has not run yet"
    (row,) = moving.registry.audit.rows(newest=1)
    assert (row.actor, row.verb) == ("anna", "order.place")


def test_pinned_and_revoked_devices_are_not_touched(moving: Fleet) -> None:
    moving.registry.devices.pin("ada", 0, actor=OPERATOR)
    moving.registry.devices.revoke("cyd", why="lost", actor=OPERATOR)
    assert ask(moving, rebase(NEW, dry_run=True))["touches"]["devices"] == ["bob"]


@pytest.mark.parametrize(
    ("base", "code"), [(OLD.digest, "already-there"), (OTHER.digest, "another-network")]
)
def test_what_the_service_would_refuse_is_refused_before_it_is_ordered(
    moving: Fleet, base: str, code: str
) -> None:
    with pytest.raises(FleetError) as refused:
        ask(moving, r.ReleaseRebase(key="k", base=base))
    assert refused.value.code == code
    assert moving.registry.orders.waiting() == ()


def test_another_network_is_ordered_where_it_is_meant(moving: Fleet) -> None:
    told = ask(moving, rebase(OTHER, another_network=True))
    assert told["difference"] > 0.01
    (order,) = moving.registry.orders.waiting()
    assert order.args["another_network"] is True


def test_a_grown_base_says_whether_its_classes_are_learned_and_another_method_learns_them(
    moving: Fleet,
) -> None:
    told = ask(moving, rebase(GROWN, dry_run=True))
    assert (told["from_method"], told["method"], told["learns_classes"]) == ("core", "core", False)
    with pytest.raises(FleetError) as refused:
        ask(moving, rebase(GROWN, method="nonsense", dry_run=True))
    assert refused.value.code == "unknown-method"
    told = ask(moving, rebase(GROWN, method="core+head"))
    assert (told["kind"], told["method"], told["learns_classes"]) == ("grown", "core+head", True)
    done(moving.registry)
    release = moving.registry.releases.load(1)
    assert (release.method, release.base) == ("core+head", GROWN.digest)
    head = {name: array for name, array in release.state.arrays.items() if name.startswith("head.")}
    assert head
    assert not any(array.any() for array in head.values())
    for name, array in STATE.arrays.items():
        np.testing.assert_array_equal(release.state.arrays[name], array)


def test_a_base_is_named_whole_and_a_beginning_says_which_one_was_meant(moving: Fleet) -> None:
    with pytest.raises(FleetError) as refused:
        ask(moving, r.ReleaseRebase(key="k", base=NEW.digest[:10]))
    assert refused.value.code == "no-such-base"
    assert refused.value.hint == f"Write it whole: {NEW.digest}"
    for unknown in ("f" * 64, ""):
        with pytest.raises(FleetError) as refused:
            ask(moving, r.ReleaseRebase(key="k", base=unknown))
        assert refused.value.code == ("no-such-base" if unknown else "bad-request")


def test_an_operator_may_and_a_viewer_may_not(moving: Fleet) -> None:
    with remote(moving, trust(Role.viewer)) as viewer:
        with pytest.raises(FleetError) as refused:
            viewer.ask(rebase(NEW))
        assert refused.value.code == "role-needed"
    with remote(moving, trust(Role.operator, "bea")) as operator:
        assert operator.ask(rebase(NEW)).data["kind"] == "rebased"


def test_a_wait_ends_with_what_came_of_the_order_here_and_over_the_wire(moving: Fleet) -> None:
    with remote(moving, trust(Role.operator)) as far:
        seen = last_row(far)
        number = far.ask(rebase(NEW)).data["order"]["id"]
        other = moving.registry.orders.place("start_round", actor=OPERATOR)
        moving.registry.orders.finish(other.id, error="too few", actor="service")
        done(moving.registry)
        for verbs in (far, local(moving)):
            result = finished_order(verbs, number, seen, 20.0)
            assert (result["release"], result["promoted"]) == (1, True)


def test_a_wait_tells_of_an_order_that_failed_and_of_one_that_takes_too_long(
    moving: Fleet,
) -> None:
    verbs, seen = local(moving), last_row(local(moving))
    order = ask(moving, rebase(NEW))["order"]["id"]
    with pytest.raises(LateError) as late:
        finished_order(verbs, order, seen, 0.01)
    assert (late.value.code, late.value.exit_code) == ("wait-timeout", 3)
    moving.registry.orders.take(order, actor="service")
    moving.registry.orders.finish(order, error="already-there: no", actor="service")
    with pytest.raises(FleetError) as failed:
        finished_order(verbs, order, seen, 20.0)
    assert (failed.value.code, failed.value.exit_code) == ("order-failed", 1)
    assert "already-there: no" in failed.value.message


def test_bases_releases_and_the_verification_after_a_rebase(moving: Fleet) -> None:
    policy = json.dumps({"base": OLD.digest, "rank": 2})
    ask(moving, r.PolicySet(key="p", policy=policy))
    ask(moving, rebase(NEW))
    done(moving.registry)
    bases = {each["digest"]: each for each in ask(moving, r.BaseList())["bases"]}
    used = {digest: each["used_by_policy"] for digest, each in bases.items()}
    assert used == {each.digest: each is NEW for each in (OLD, NEW, GROWN, OTHER)}
    assert {digest: each["releases"] for digest, each in bases.items()} == {
        OLD.digest: 1,
        NEW.digest: 1,
        GROWN.digest: 0,
        OTHER.digest: 0,
    }
    listed = ask(moving, r.ReleaseList())["releases"]
    assert [each["base"] for each in listed] == [OLD.digest, NEW.digest]
    shown = ask(moving, r.ReleaseShow())["release"]
    assert shown["rebase"]["kind"] == "rebased"
    assert shown["rebase"]["from_base"] == OLD.digest
    assert ask(moving, r.ReleaseShow(release=0))["release"]["rebase"] is None
    found = ask(moving, r.ReleaseVerify())["releases"]
    assert [each["problems"] for each in found[:1]] == [[]]
    assert found[1]["problems"] == ["it is not signed, and this server signs"]
    back = ask(moving, r.ReleaseRollback(key="b"))
    assert back["release"]["number"] == 0
    after = {each["digest"]: each["used_by_policy"] for each in ask(moving, r.BaseList())["bases"]}
    assert after == {each.digest: each is OLD for each in (OLD, NEW, GROWN, OTHER)}


def test_an_installed_base_says_whether_the_way_to_it_is_a_rebase(
    moving: Fleet, tmp_path: Path
) -> None:
    from fleet.adapt.base import bytes_of_base
    from server.registry import open_registry

    install = r.BaseInstall(key="i", content=bytes_of_base(NEW))
    assert ask(moving, install)["moves"] is True
    clock = Clock()
    with open_registry(tmp_path / "fresh.sqlite", clock=clock) as registry:
        assert ask(fleet_of(registry, clock, tmp_path), install)["moves"] is False


def test_why_tells_that_a_base_comes_with_the_next_telling(moving: Fleet) -> None:
    from fleet.federate.records import DeviceStatus

    beats(moving)
    ask(moving, rebase(NEW))
    done(moving.registry)
    status = DeviceStatus(device="ada", train_windows=4, test_windows=1, release=0)
    moving.registry.devices.seen(status)
    moving.registry.observations.told("ada", 1, "base-missing: not here")
    sentence = ask(moving, r.DeviceWhy(device="ada"))["sentence"]
    assert "it is told again, with the base that it lacks" in sentence
