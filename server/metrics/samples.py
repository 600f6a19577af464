"""From a look at a registry to metric families; pure, and bounded however large the fleet is.

No label is a device's name or free text: what is no reason or state that this Corefleet knows is
``other``, and releases beyond the :data:`MOST_RELEASES` that most devices serve are one, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric

from fleet.federate.admission import Reason
from fleet.measure.f1 import macro_f1
from server.metrics.records import BUCKETS_S, Beat, Judged, Last, Seen, Snapshot, Tally
from server.registry.records import DeviceState

__all__ = ["HEARD_S", "MOST_RELEASES", "OTHER", "PREFIX", "samples", "unreadable"]

PREFIX = "corefleet_"
HEARD_S = 660.0
"""A device is heard of lately within this: two questions for its status, and a minute."""
MOST_RELEASES = 8
"""Releases that have a series of their own; all others are one."""
OTHER = "other"
REASONS = frozenset(each.value for each in Reason)
# Those of server.standing.eligibility, which would load torch; a test holds them to it.
ABSENCES = frozenset(
    {
        *("revoked", "quarantined", "tag", "offline", "silent", "stale"),
        *("other-base", "no-labels", "unusable", "byte-budget", "not-drawn"),
    }
)
K = TypeVar("K", str, int)
READABLE = ("registry_readable", "Whether the registry could be read for this answer.")


def samples(snapshot: Snapshot, now: float) -> tuple[Metric, ...]:
    """Return a registry's metrics.

    Args:
        snapshot: What the registry says.
        now: Seconds since the epoch.
    """
    return (
        _gauge(*READABLE, 1),
        *_rounds(snapshot, now),
        *_last(snapshot.last),
        *_devices(snapshot, now),
        *_service(snapshot.beat, now),
        _labelled(
            "orders",
            "Orders that the service has not finished.",
            "state",
            {state: snapshot.orders.get(state, 0) for state in ("waiting", "taken")},
        ),
        _gauge("release_newest", "Number of the newest release.", snapshot.newest),
        _gauge("release_current", "Number of the fleet's release.", snapshot.current),
        _gauge("policy_version", "Version of the policy; 0: there is none.", snapshot.policy),
        _gauge("audit_rows", "Rows of the audit; they never become fewer.", snapshot.audit),
        _gauge("registry_bytes", "Size of the registry, with its log.", snapshot.size),
        *_judged(snapshot.judged),
    )


def unreadable() -> tuple[Metric, ...]:
    """Return what is said of a registry that cannot be read."""
    return (_gauge(*READABLE, 0),)


def _rounds(snapshot: Snapshot, now: float) -> Iterator[Metric]:
    tally: Tally = snapshot.tally
    outcomes = {name: tally.outcomes.get(name, 0) for name in ("released", "abandoned")}
    yield _counter("rounds", "Attempts of rounds that ended.", {"outcome": outcomes})
    yield _gauge("round_open", "Whether a round is open.", int(snapshot.open is not None))
    due = snapshot.deadline_at_s
    text = "How long the open round is over its deadline; 0: it is not."
    yield _gauge("round_overdue_seconds", text, 0.0 if due is None else max(0.0, now - due))
    total = CounterMetricFamily(f"{PREFIX}updates_accepted", "Updates that were accepted.")
    total.add_metric([], tally.accepted)
    yield total
    refused = _named(tally.refused, REASONS)
    yield _counter("refusals", "Devices that were asked and have no update.", {"reason": refused})
    for name, key, text in (
        ("update_bytes", "bytes", "Packed arrays of closed rounds' plans and updates."),
        ("wire_bytes", "wire_bytes", "Whole messages of closed rounds' plans and updates."),
    ):
        both = {way: tally.traffic.get(f"{key}_{way}", 0) for way in ("up", "down")}
        yield _counter(name, text, {"direction": both})
    yield _histogram(tally)


def _histogram(tally: Tally) -> Metric:
    bounds = [*(f"{bound:.1f}" for bound in BUCKETS_S), "+Inf"]
    below = np.cumsum(tally.lasted).tolist()
    made = HistogramMetricFamily(f"{PREFIX}round_seconds", "From a round's opening to its close.")
    made.add_metric([], list(zip(bounds, below, strict=True)), tally.seconds)
    return made


def _last(last: Last | None) -> Iterator[Metric]:
    seconds = None if last is None else last.seconds
    yield _gauge("round_last_seconds", "Duration of the newest closed round.", seconds)
    released = None if last is None else int(last.released)
    yield _gauge("round_last_released", "Whether it ended in a release.", released)
    absent = {} if last is None else _named(last.absent, ABSENCES)
    yield _labelled("round_last_absent", "Devices not asked in it.", "reason", absent)


def _devices(snapshot: Snapshot, now: float) -> Iterator[Metric]:
    states = _count(snapshot.devices, lambda one: one.state)
    known = {state.value: states.get(state.value, 0) for state in DeviceState}
    yield _labelled("devices", "Devices that were ever enrolled.", "state", known)
    there = [one for one in snapshot.devices if one.state != DeviceState.revoked.value]
    heard = (one.count for one in there if _is_heard(one, now))
    text = f"Devices, not revoked, that were heard of in the last {HEARD_S:.0f} s."
    yield _gauge("devices_heard", text, sum(heard))
    steps = _count(there, lambda one: _step(one, snapshot.current))
    found = {step: steps.get(step, 0) for step in ("in", "out", "unknown")}
    text = "Devices, not revoked, that serve the release that they should, or not."
    yield _labelled("devices_in_step", text, "step", found)
    yield _labelled("devices_serving", "Devices by release.", "release", _serving(there))
    text = "Devices that did not take the release that they were told last."
    yield _gauge("deliveries_failed", text, snapshot.undelivered)


def _is_heard(one: Seen, now: float) -> bool:
    return one.heard_at_s is not None and now - one.heard_at_s <= HEARD_S


def _step(one: Seen, current: int | None) -> str:
    should = current if one.pinned is None else one.pinned
    if should is None or one.serves < 0:
        return "unknown"
    return "in" if one.serves == should else "out"


def _serving(devices: Iterable[Seen]) -> dict[str, int]:
    served = _count(devices, lambda one: one.serves)
    most = sorted(
        (number for number in served if number >= 0),
        key=lambda number: (-served[number], -number),
    )
    found = {str(number): served[number] for number in most[:MOST_RELEASES]}
    found["none"] = served.get(-1, 0)
    found[OTHER] = sum(served[number] for number in most[MOST_RELEASES:])
    return found


def _service(beat: Beat | None, now: float) -> Iterator[Metric]:
    age = None if beat is None else now - beat.alive_at_s
    text = "Since the service said that it lives; negative: a clock was set back."
    yield _gauge("service_heartbeat_age_seconds", text, age)
    started = None if beat is None else beat.started_at_s
    text = "When the service started, seconds since the epoch."
    yield _gauge("service_started_timestamp_seconds", text, started)
    info = {} if beat is None else {beat.version: 1}
    yield _labelled("service_info", "Version of the service.", "version", info)


def _judged(judged: Judged | None) -> Iterator[Metric]:
    release = None if judged is None else judged.release
    yield _gauge("evaluation_release", "Release that was judged last.", release)
    devices = None if judged is None else len(judged.counts)
    yield _gauge("evaluation_devices", "Devices that judged it.", devices)
    pooled = None
    if judged is not None and judged.counts:
        pooled = macro_f1(np.sum(np.asarray(judged.counts, np.int64), axis=0))
    text = "Pooled macro-F1 of the release that was judged last, 0 to 1."
    yield _gauge("evaluation_macro_f1", text, pooled)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """Return a gauge; without a value it has no sample."""
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    made = GaugeMetricFamily(PREFIX + name, text, labels=[label])
    for each, value in sorted(values.items()):
        made.add_metric([each], value)
    return made


def _counter(name: str, text: str, values: Mapping[str, Mapping[str, float]]) -> Metric:
    [(label, series)] = values.items()
    made = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for each, value in sorted(series.items()):
        made.add_metric([each], value)
    return made


def _named(counts: Mapping[str, int], known: Iterable[str]) -> dict[str, int]:
    """Keep the counts of what is known, zero included, and sum up the rest."""
    names = sorted(known)
    found = {name: counts.get(name, 0) for name in names}
    return {**found, OTHER: sum(counts.values()) - sum(found.values())}


def _count(devices: Iterable[Seen], key: Callable[[Seen], K]) -> Counter[K]:
    found: Counter[K] = Counter()
    for one in devices:
        found[key(one)] += one.count
    return found
