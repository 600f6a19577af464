"""Check of whose releases the device takes: the pinned key, and what was refused by it."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from clients.agent.doctor.finding import Finding, Subject, failed, fine, skipped, warn
from clients.agent.doctor.integrity import SERVING, STORE, present
from clients.agent.pinned import REFUSED, pinned_keys, refusals_of
from fleet.errors import FleetError

__all__ = ["check_release_key"]

TRUST = "fleet-device trust release-key.pub, from the server's folder"
COMPARE = "Compare with the server's: fleet release verify, and fleet device why NAME there."
GO_BACK = "It is served until another is taken; by hand: fleet-device release list, then use NUMBER"


def check_release_key(subject: Subject) -> Finding:
    """A key is pinned by which releases are verified: what came last, and what is served."""
    if subject.config is None:
        return skipped("there is no configuration that names a key")
    try:
        keys = pinned_keys(subject.config, subject.state)
    except FleetError as error:
        return failed(f"no release is taken: {error.message}", error.hint or TRUST)
    if not keys:
        return warn("releases are not verified: no key pinned", TRUST)
    pinned = f"releases are taken that {' or '.join(keys)} signed"
    last, counts = _refused(subject)
    told = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    so_far = f"; refused so far: {told}" if told else ""
    unsigned = _served_unsigned(subject, keys)
    if unsigned is not None:
        served = f"release {unsigned}, which is served, was signed by none of them"
        return warn(f"{pinned}; {served}{so_far}", GO_BACK)
    if last:
        why = f"the last that came was refused ({last.get('reason')}): {last.get('detail')}"
        return warn(f"{pinned}; {why}{so_far}", COMPARE)
    return fine(f"{pinned}{so_far}")


def _served_unsigned(subject: Subject, keys: Collection[str]) -> int | None:
    if not present(SERVING):
        return None
    from clients.agent.serving.signer import served_unsigned

    return served_unsigned(subject.state, keys)


def _refused(subject: Subject) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the refusal after which no release was taken, and how many there ever were."""
    nothing: tuple[dict[str, Any], dict[str, int]] = {}, {}
    if not present(STORE):
        return nothing
    from clients.agent.store.store import FILE_NAME, open_reader

    if not (subject.state / FILE_NAME).is_file():
        return nothing
    try:
        with open_reader(subject.state, clock=time.time) as store:
            return store.state.get(REFUSED) or {}, refusals_of(store.counters.all())
    except FleetError:  # the check ``store`` says what is wrong with it
        return nothing
