from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.federate.admission import Reason
from server.metrics.records import BUCKETS_S, Last, Seen, Snapshot, Tally
from server.metrics.samples import ABSENCES, MOST_RELEASES, REASONS, samples
from server.standing.eligibility import Absent

COUNTS = st.dictionaries(st.text(max_size=20), st.integers(1, 1000), max_size=40)
DEVICES = st.lists(
    st.builds(
        Seen,
        state=st.sampled_from(["enrolled", "quarantined", "revoked", "of tomorrow"]),
        serves=st.integers(-1, 50),
        pinned=st.none() | st.integers(0, 50),
        heard_at_s=st.none() | st.floats(0, 1e10),
        count=st.integers(1, 1000),
    ),
    max_size=60,
)
MOST_SAMPLES = 120
"""Of any fleet; each reason, state and release that has a series of its own is one."""


def labels_of(snapshot: Snapshot, name: str) -> dict[str, float]:
    family = next(f for f in samples(snapshot, 0.0) if f.name == f"corefleet_{name}")
    return {"".join(each.labels.values()): each.value for each in family.samples}


@settings(max_examples=60, deadline=None)
@given(refused=COUNTS, absent=COUNTS, devices=DEVICES)
def test_labels_are_bounded_and_nothing_is_left_out_whatever_the_registry_holds(
    refused: dict[str, int], absent: dict[str, int], devices: list[Seen]
) -> None:
    snapshot = Snapshot(
        closed=Tally(refused={**refused, "late": 3}),
        last=Last(1.0, True, {**absent, "offline": 2}),
        devices=tuple(devices),
        current=1,
    )
    assert sum(len(family.samples) for family in samples(snapshot, 0.0)) <= MOST_SAMPLES
    refusals, absences = labels_of(snapshot, "refusals"), labels_of(snapshot, "round_last_absent")
    assert refusals.keys() == REASONS | {"other"}
    assert absences.keys() == ABSENCES | {"other"}
    assert sum(refusals.values()) == sum(snapshot.tally.refused.values())
    assert refusals["late"] == 3
    serving = labels_of(snapshot, "devices_serving")
    assert len(serving) <= MOST_RELEASES + 2
    there = sum(one.count for one in devices if one.state != "revoked")
    assert sum(serving.values()) == sum(labels_of(snapshot, "devices_in_step").values()) == there


def test_the_releases_that_most_devices_serve_have_their_own_series() -> None:
    devices = tuple(Seen("enrolled", serves=number, count=number) for number in range(1, 13))
    serving = labels_of(Snapshot(devices=devices), "devices_serving")
    own = {str(number): float(number) for number in range(5, 13)}
    assert serving == {**own, "other": 1 + 2 + 3 + 4, "none": 0}


def test_the_reasons_are_those_of_the_service() -> None:
    assert frozenset(each.value for each in Absent) == ABSENCES
    assert frozenset(each.value for each in Reason) == REASONS


def test_sums_are_a_monoid() -> None:
    one = Tally((1, 1), {"released": 1}, 2, {"late": 1}, {"bytes_up": 5}, _lasted(0), 0.5)
    other = Tally((2, 1), {"abandoned": 1}, 1, {"late": 2}, {"bytes_down": 3}, _lasted(13), 1e6)
    both = one + other
    assert both == other + one == both + Tally() == Tally() + both
    assert (both.through, both.accepted, both.refused) == ((2, 1), 3, {"late": 3})
    assert sum(both.lasted) == 2


def _lasted(which: int) -> tuple[int, ...]:
    return tuple(int(index == which) for index in range(len(BUCKETS_S) + 1))
