"""Why a device took part in the last round or not, and whether it serves what it should."""

from __future__ import annotations

from typing import Any

from server.control.verbs.counts import weight_in
from server.control.verbs.fleet import Fleet
from server.control.verbs.shown import should_serve, utc
from server.registry.records import Device, RoundRow, RoundState

__all__ = ["sentence"]


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
    if told is not None and told.reason:
        often = "once" if told.tries == 1 else f"{told.tries} times"
        tried = f", told {often}: {told.reason}"
    return (
        f"it serves release {device.serves_release} and should serve {should}{because} "
        f"({seen}{tried})"
    )
