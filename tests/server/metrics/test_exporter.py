from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet.federate.admission import Reason
from fleet.federate.releases import Release
from server.metrics.exporter import AHEAD_S, SILENT_S, Exporter
from server.metrics.samples import HEARD_S
from server.registry import Registry, open_registry
from server.registry.absences import Absence
from server.registry.records import RefusalRow
from tests.server.control.controlling import lived_in
from tests.server.registry.filled import (
    COORDINATOR,
    DEVICES,
    OPERATOR,
    RULE,
    Clock,
    aggregate,
    answer,
    plan_from,
)
from tests.server.registry.postgres import running

ROOT = Path(__file__).resolve().parents[3]
Values = dict[tuple[str, ...], float]


def values_of(exporter: Exporter) -> Values:
    """Samples by name and label values, the prefix left out."""
    families = text_string_to_metric_families(exporter.exposition().decode())
    return {
        (sample.name.removeprefix("corefleet_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_registry_that_was_lived_in_has_known_numbers(
    exporter: Exporter, registry: Registry, file: Path
) -> None:
    found = values_of(exporter)
    wanted = {
        ("registry_readable",): 1,
        ("rounds_total", "released"): 2,
        ("rounds_total", "abandoned"): 0,
        ("round_open",): 0,
        ("round_overdue_seconds",): 0,
        ("updates_accepted_total",): 5,
        ("refusals_total", "not-finite"): 1,
        ("refusals_total", "late"): 0,
        ("refusals_total", "other"): 0,
        ("update_bytes_total", "up"): 1280,
        ("update_bytes_total", "down"): 0,
        ("wire_bytes_total", "up"): 0,
        ("round_seconds_bucket", "1.0"): 1,
        ("round_seconds_bucket", "5.0"): 2,
        ("round_seconds_bucket", "+Inf"): 2,
        ("round_seconds_sum",): 5,
        ("round_seconds_count",): 2,
        ("round_last_seconds",): 5,
        ("round_last_released",): 1,
        ("devices", "enrolled"): 3,
        ("devices", "revoked"): 0,
        ("devices_heard",): 2,
        ("devices_in_step", "in"): 1,
        ("devices_in_step", "out"): 1,
        ("devices_in_step", "unknown"): 1,
        ("devices_serving", "2"): 1,
        ("devices_serving", "1"): 1,
        ("devices_serving", "none"): 1,
        ("devices_serving", "other"): 0,
        ("deliveries_failed",): 0,
        ("orders", "waiting"): 0,
        ("release_newest",): 2,
        ("release_current",): 2,
        ("policy_version",): 0,
        ("audit_rows",): registry.audit.head().seq,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["registry_bytes",] >= file.stat().st_size
    # What never was has no number, rather than a wrong one.
    assert not {("service_heartbeat_age_seconds",), ("evaluation_macro_f1",)} & found.keys()


def test_what_the_service_found_has_known_numbers(
    exporter: Exporter, registry: Registry, clock: Clock
) -> None:
    seen = registry.observations
    seen.beat(pid=7, version="0.1.0", started_at_s=clock.now_s - 100, doing={})
    seen.told("bob", 2, "probe-fell")
    seen.evaluated(1, {"ada": [[1, 0], [0, 1]]}, actor=COORDINATOR)
    clock.now_s += 12
    seen.evaluated(2, {"ada": [[4, 0], [0, 4]], "bob": [[0, 2], [2, 0]]}, actor=COORDINATOR)
    registry.orders.place("start_round", actor=OPERATOR)
    registry.devices.quarantine("cyd", why="loose", actor=OPERATOR)
    registry.devices.pin("bob", 1, actor=OPERATOR)
    found = values_of(exporter)
    wanted = {
        ("service_heartbeat_age_seconds",): 12,
        ("service_started_timestamp_seconds",): clock.now_s - 112,
        ("service_info", "0.1.0"): 1,
        ("deliveries_failed",): 1,
        ("evaluation_release",): 2,
        ("evaluation_devices",): 2,
        ("orders", "waiting"): 1,
        ("devices", "enrolled"): 2,
        ("devices", "quarantined"): 1,
        ("devices_in_step", "in"): 2,
        ("devices_in_step", "out"): 0,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    # Eight of twelve right in two equal classes: 4 of 6 each.
    assert found["evaluation_macro_f1",] == pytest.approx(4 / 6)


def test_revoked_and_silent_devices_are_not_heard_of(
    exporter: Exporter, registry: Registry, clock: Clock
) -> None:
    registry.devices.revoke("ada", why="stolen", actor=OPERATOR)
    found = values_of(exporter)
    assert found["devices_heard",] == 1
    assert found["devices", "revoked"] == 1
    assert ("devices_serving", "2") not in found
    clock.now_s += HEARD_S + 1
    assert values_of(exporter)["devices_heard",] == 0


def test_carried_sums_are_those_of_a_fresh_look_at_every_step_of_a_round(
    exporter: Exporter, registry: Registry, clock: Clock, releases: list[Release]
) -> None:
    def looked() -> Values:
        found = values_of(exporter)
        assert found == values_of(Exporter(registry, clock))
        return found

    before = looked()
    plan = plan_from(releases[-1], 3)
    absent = {"cyd": Absence(reason="offline"), "dot": Absence(reason="a reason of tomorrow")}
    registry.rounds.open(plan, DEVICES[:2], rule=RULE, absent=absent, actor=COORDINATOR)
    assert looked()["round_open",] == 1
    clock.now_s += plan.deadline_s + 9
    assert looked()["round_overdue_seconds",] == 9
    registry.rounds.accept(3, *answer(plan, "ada"), actor=COORDINATOR)
    assert looked()["updates_accepted_total",] == before["updates_accepted_total",] + 1
    refusal = RefusalRow(device="bob", reason=Reason.late, detail="", at_s=clock.now_s)
    registry.rounds.refuse(3, refusal, actor=COORDINATOR)
    assert looked()["refusals_total", "late"] == 1
    traffic = {"wire_bytes_up": 7}
    registry.rounds.abandon(3, why="too few", traffic=traffic, actor=COORDINATOR)
    found = looked()
    assert found["rounds_total", "abandoned"] == 1
    assert found["round_last_released",] == found["round_open",] == 0
    assert found["round_last_absent", "offline"] == found["round_last_absent", "other"] == 1

    again = registry.rounds.open(plan, DEVICES[:1], rule=RULE, actor=COORDINATOR)
    assert again.attempt == 2
    looked()
    admitted, payload = answer(plan, "ada")
    registry.rounds.accept(3, admitted, payload, actor=COORDINATOR)
    three = aggregate(releases[-1], plan, [admitted], 3)
    registry.rounds.release(3, three, traffic=traffic, actor=COORDINATOR)
    found = looked()
    assert found["updates_accepted_total",] == before["updates_accepted_total",] + 2
    assert found["wire_bytes_total", "up"] == 14
    assert found["round_seconds_count",] == 4
    assert found["round_seconds_bucket", "1800.0"] == 4
    assert found["round_seconds_bucket", "600.0"] == 3


def test_a_registry_that_was_put_back_is_counted_afresh(
    exporter: Exporter, registry: Registry, clock: Clock, file: Path
) -> None:
    known = values_of(exporter)
    exporter._before = replace(exporter._before, through=(900, 1))
    assert values_of(exporter) == known == values_of(Exporter(registry, clock))


@pytest.mark.services
def test_on_postgresql_the_numbers_are_the_same(exporter: Exporter) -> None:
    clock = Clock()
    with running() as server, open_registry(server.fresh(), clock=clock) as registry:
        lived_in(registry, clock)
        found, wanted = values_of(Exporter(registry, clock)), values_of(exporter)
    assert found.pop(("registry_bytes",)) > 0
    assert wanted.pop(("registry_bytes",)) > 0
    assert found == wanted


def test_a_registry_that_is_gone_is_said_and_nothing_else(exporter: Exporter, file: Path) -> None:
    assert exporter.health().ok
    file.unlink()
    assert values_of(exporter) == {("registry_readable",): 0}
    assert [code for code, _, _ in exporter.health().reasons] == ["registry-gone"]
    assert [code for code, _, _ in exporter.readiness().reasons] == ["registry-gone"]


@pytest.mark.parametrize(
    ("age_s", "code"),
    [
        (0.0, ""),
        (SILENT_S, ""),
        (SILENT_S + 1, "service-silent"),
        (-AHEAD_S, ""),
        (-AHEAD_S - 1, "clock-behind"),
    ],
)
def test_a_service_is_ready_while_it_beats(
    exporter: Exporter, registry: Registry, clock: Clock, age_s: float, code: str
) -> None:
    assert exporter.readiness().reasons[0][0] == "service-never-ran"
    registry.observations.beat(pid=7, version="0.1.0", started_at_s=0.0, doing={})
    clock.now_s += age_s
    verdict = exporter.readiness()
    assert [each[0] for each in verdict.reasons] == ([code] if code else [])
    assert verdict.ok is not bool(code)


def test_the_docs_name_every_metric_and_no_other(exporter: Exporter) -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    told = set(re.findall(r"^\| `corefleet_(\w+)`", page, flags=re.MULTILINE))
    families = text_string_to_metric_families(exporter.exposition().decode())
    counters = {"counter": "_total"}
    made = {
        family.name.removeprefix("corefleet_") + counters.get(family.type, "")
        for family in families
    }
    assert told == made
