"""One sentence why a device did or did not take part, and whether it serves what it should."""

from __future__ import annotations

from fleet.federate.admission import Reason
from fleet.federate.releases import Release
from server.control import requests as r
from server.control.verbs.fleet import Fleet
from server.control.verbs.why import USUAL_S
from server.registry.records import RefusalRow
from tests.server.control.controlling import ask, beats, status
from tests.server.registry.filled import (
    Clock,
    key_of,
    opened,
)


def why(fleet: Fleet, device: str) -> tuple[str, str]:
    told = ask(fleet, r.DeviceWhy(device=device))
    assert told["took_part"] == (told["reason"] == "accepted")
    return told["reason"], told["sentence"]


def test_why_tells_of_a_device_that_took_part_and_serves_what_it_should(fleet: Fleet) -> None:
    code, sentence = why(fleet, "ada")
    weight = ask(fleet, r.RoundShow(round=2))["round"]["updates"][0]["weight"]
    assert code == "accepted"
    assert sentence == (
        f"ada took part in round 2: its update of weight {weight} was accepted; "
        "it serves release 2, as it should."
    )


def test_why_tells_of_a_device_that_serves_another_release(fleet: Fleet, clock: Clock) -> None:
    assert why(fleet, "bob")[1].endswith(
        "it serves release 1 and should serve 2 (was seen 2023-11-14T22:15:25Z); the fleet is on "
        "that release since 2023-11-14T22:15:25Z, and a device usually takes one within 20 s."
    )
    clock.now_s += USUAL_S + 1
    assert why(fleet, "bob")[1].endswith(
        "since 2023-11-14T22:15:25Z, though a device usually takes one within 20 s: see "
        "fleet device list, and on the device fleet-device status."
    )
    fleet.registry.observations.told("bob", 2, "its disk is full")
    assert why(fleet, "bob")[1].endswith(
        ", told once, last at 2023-11-14T22:15:46Z: its disk is full); "
        "it is told again, later each time; on the device: fleet-device status."
    )
    # What it said to another release is no reason for this one.
    fleet.registry.observations.told("bob", 0, "its disk is full")
    assert "its disk is full" not in why(fleet, "bob")[1]


def test_why_tells_that_nobody_brings_a_release_while_the_service_is_away(
    fleet: Fleet, clock: Clock
) -> None:
    beats(fleet)
    assert "nobody tells it" not in why(fleet, "bob")[1]
    clock.now_s += 300
    assert why(fleet, "bob")[1].endswith(
        "nobody tells it, since the service was last heard of 5 min ago: fleet server up."
    )


def test_why_tells_of_a_device_whose_update_was_refused(fleet: Fleet) -> None:
    assert why(fleet, "cyd") == (
        "not-finite",
        "cyd took no part in round 2: not-finite: 2 entries are none; "
        "it should serve release 2, and has not said what it serves (was never seen).",
    )


def test_why_tells_of_a_device_that_is_awaited_or_never_answered(
    fleet: Fleet, releases: list[Release]
) -> None:
    opened(fleet.registry, releases[2], 3)
    code, sentence = why(fleet, "ada")
    assert code == "awaited"
    assert sentence.startswith("ada was asked in round 3 and has until 2023-11-14T22:")
    fleet.registry.rounds.abandon(3, why="stuck", actor="c")
    code, sentence = why(fleet, "ada")
    assert code == "no-reply"
    assert sentence.startswith("ada took no part in round 3: it was asked and did not answer; ")


def test_why_does_not_blame_a_late_answer_to_the_round_before(
    fleet: Fleet, releases: list[Release], clock: Clock
) -> None:
    opened(fleet.registry, releases[2], 3)
    late = RefusalRow(
        device="cyd", reason=Reason.late, detail="of round 2", at_s=clock.now_s, earlier=True
    )
    fleet.registry.rounds.refuse(3, late, actor="c")
    assert why(fleet, "cyd")[0] == "awaited"
    found = ask(fleet, r.RoundShow())["round"]
    assert (found["refused"], found["unanswered"]) == (0, ["ada", "bob", "cyd"])
    assert ask(fleet, r.RoundList(newest=1))["rounds"][0]["refused"] == 0


def test_why_tells_of_devices_that_were_not_asked(
    fleet: Fleet, releases: list[Release], clock: Clock
) -> None:
    from tests.server.registry.filled import RULE, plan_from

    fleet.registry.devices.quarantine("bob", why="noise", actor="anna")
    fleet.registry.rounds.open(plan_from(releases[2], 3), ["ada"], rule=RULE, actor="c")
    clock.now_s += 1
    fleet.registry.devices.enroll("dan", key_of("dan"), actor="anna")
    assert why(fleet, "bob")[1].startswith(
        "bob is quarantined since 2023-11-14T22:15:25Z by anna (noise); it was not asked in "
        "round 3; "
    )
    assert why(fleet, "cyd")[1].startswith(
        "cyd was not asked in round 3, because it was not selected; "
    )
    assert why(fleet, "dan")[0] == "enrolled-later"


def test_why_tells_the_reason_that_was_recorded(fleet: Fleet, releases: list[Release]) -> None:
    from server.registry.absences import Absence
    from tests.server.registry.filled import RULE, plan_from

    absent = {"bob": Absence(reason="stale", detail="not seen for 3 days")}
    fleet.registry.rounds.open(
        plan_from(releases[2], 3), ["ada"], rule=RULE, absent=absent, actor="c"
    )
    assert why(fleet, "bob") == (
        "stale",
        "bob was not asked in round 3: stale: not seen for 3 days; "
        "it serves release 1 and should serve 2 (was seen 2023-11-14T22:15:25Z); the fleet is on "
        "that release since 2023-11-14T22:15:25Z, and a device usually takes one within 20 s.",
    )


def test_why_tells_of_a_pinned_and_of_a_revoked_device(fleet: Fleet) -> None:
    fleet.registry.devices.pin("bob", 1, actor="anna")
    assert why(fleet, "bob")[1].endswith(
        "it serves release 1, as it should, to which it is pinned."
    )
    fleet.registry.devices.revoke("bob", why="lost", actor="anna")
    told = why(fleet, "bob")[1]
    assert told.startswith(
        "bob is revoked since 2023-11-14T22:15:25Z by anna (lost); it took part in round 2: "
    )
    assert told.endswith("it should serve no release.")


def test_a_device_that_says_what_it_serves_is_compared_with_what_it_should(fleet: Fleet) -> None:
    fleet.registry.devices.seen(status("cyd", 2))
    steps = {each["name"]: each["in_step"] for each in ask(fleet, r.DeviceList())["devices"]}
    assert steps == {"ada": True, "bob": False, "cyd": True}
