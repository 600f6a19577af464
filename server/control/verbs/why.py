"""Why a device took part in the last round or not, and whether it serves what it should."""

from __future__ import annotations

from typing import Any

from fleet.federate.wire import BASE_MISSING
from server.control.verbs.counts import weight_in
from server.control.verbs.fleet import Fleet
from server.control.verbs.life import life
from server.control.verbs.shown import should_serve, utc
from server.registry.records import Device, RoundRow, RoundState

__all__ = ["USUAL_S", "sentence"]

USUAL_S = 20.0
"""From a promotion until a device that is online serves the release, measured on two cores."""


def sentence(fleet: Fleet, device: Device) -> dict[str, Any]:
    """Return the one sentence, and what it rests on, as JSON."""
    last = fleet.registry.rounds.all(1)
    code, told = _part(fleet, device, last[-1] if last else None)
    serving = _serving(fleet, device)
    return {
        "device": device.name,
        "round": last[-1].round if last else None,
        "took_part": code == "accepted",
        "reason": code,
        "sentence": f"{device.name} {_barred(device)}{told}; {serving}.",
    }


def _part(fleet: Fleet, device: Device, row: RoundRow | None) -> tuple[str, str]:
    """Return a stable code, and what became of a device in a round."""
    if row is None:
        return "no-round", "took part in no round, because there was none yet"
    name = f"round {row.round}"
    if (weight := weight_in(fleet.registry, row, device.name)) is not None:
        left = "; the round was abandoned" if row.state is RoundState.abandoned else ""
        return "accepted", f"took part in {name}: its update of weight {weight} was accepted{left}"
    refusals = fleet.registry.rounds.refusals(row.round, row.attempt)
    for refusal in refusals:
        if refusal.device == device.name and not refusal.earlier:
            told = f"{refusal.reason.value}: {refusal.detail}".rstrip(": ")
            return refusal.reason.value, f"took no part in {name}: {told}"
    if device.name in row.selected:
        return _unanswered(row, name)
    absence = fleet.registry.rounds.absences(row.round, row.attempt).get(device.name)
    if absence is not None:
        told = f"{absence.reason}: {absence.detail}".rstrip(": ")
        return absence.reason, f"was not asked in {name}: {told}"
    if device.enrolled.at_s > row.opened.at_s:
        when = utc(device.enrolled.at_s)
        return (
            "enrolled-later",
            f"was not asked in {name}, because it was enrolled later, at {when}",
        )
    if device.revoked or device.quarantined:
        return device.state.value, f"was not asked in {name}"
    return "not-selected", f"was not asked in {name}, because it was not selected"


def _unanswered(row: RoundRow, name: str) -> tuple[str, str]:
    if row.state is RoundState.open:
        due = utc(row.deadline_at_s)
        return "awaited", f"was asked in {name} and has until {due} to answer"
    return "no-reply", f"took no part in {name}: it was asked and did not answer"


def _barred(device: Device) -> str:
    """Return what comes before all else of a device that is kept out; empty for any other."""
    deed = device.revoked or device.quarantined
    if deed is None:
        return ""
    why = f" ({deed.why})" if deed.why else ""
    return f"is {device.state.value} since {utc(deed.at_s)} by {deed.by}{why}; it "


def _serving(fleet: Fleet, device: Device) -> str:
    should = should_serve(device, fleet.registry.releases.current())
    if should is None:
        return "it should serve no release"
    because = ", to which it is pinned" if device.pinned is not None else ""
    seen = "was never seen" if device.seen_at_s is None else f"was seen {utc(device.seen_at_s)}"
    if device.serves_release < 0:
        return (
            f"it should serve release {should}{because}, and has not said what it serves ({seen})"
        )
    if device.serves_release == should:
        return f"it serves release {should}, as it should{because}"
    told = fleet.registry.observations.deliveries().get(device.name)
    tried = ""
    if told is not None and told.reason and told.release == should:
        often = "once" if told.tries == 1 else f"{told.tries} times"
        tried = f", told {often}, last at {utc(told.told_at_s)}: {told.reason}"
    way = _on_its_way(fleet, device, "" if not tried or told is None else told.reason)
    return (
        f"it serves release {device.serves_release} and should serve {should}{because} "
        f"({seen}{tried}); {way}"
    )


def _on_its_way(fleet: Fleet, device: Device, refused: str) -> str:
    """Return since when a device should serve another release, and what to do if it stays so."""
    found = life(fleet)
    if found.ran and not found.alive:
        return f"nobody tells it, since the service {found.told}: {found.next}"
    if refused.partition(":")[0] == BASE_MISSING:
        return "it is told again, with the base that it lacks; on the device: fleet-device status"
    if refused:
        return "it is told again, later each time; on the device: fleet-device status"
    current = fleet.registry.releases.current()
    promoted = None if device.pinned is not None or current is None else current.promoted
    usual = f"a device usually takes one within {USUAL_S:.0f} s"
    if promoted is None:
        return usual
    since = f"the fleet is on that release since {utc(promoted.at_s)}"
    if fleet.clock() - promoted.at_s <= USUAL_S:
        return f"{since}, and {usual}"
    return f"{since}, though {usual}: see fleet device list, and on the device fleet-device status"
