"""Check of whose releases the device takes: the pinned key, and what was refused by it."""

from __future__ import annotations

import time

from clients.agent.doctor.finding import Finding, Subject, failed, fine, skipped, warn
from clients.agent.doctor.integrity import STORE, present
from clients.agent.pinned import pinned_keys, refusals_of
from fleet.errors import FleetError

__all__ = ["check_release_key"]

TRUST = "fleet-device trust release-key.pub, from the server's folder"


def check_release_key(subject: Subject) -> Finding:
    """A key is pinned by which releases are verified, and the last ones were not refused by it."""
    if subject.config is None:
        return skipped("there is no configuration that names a key")
    try:
        keys = pinned_keys(subject.config, subject.state)
    except FleetError as error:
        return failed(f"no release is taken: {error.message}", error.hint or TRUST)
    if not keys:
        return warn("releases are not verified: no key pinned", TRUST)
    pinned = f"releases are taken that {' or '.join(keys)} signed"
    counts = _refused(subject)
    if counts:
        told = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        return warn(
            f"{pinned}; refused so far: {told}",
            "Compare with the server's: fleet release verify, and fleet device why NAME there.",
        )
    return fine(pinned)


def _refused(subject: Subject) -> dict[str, int]:
    if not present(STORE):
        return {}
    from clients.agent.store.store import FILE_NAME, open_reader

    if not (subject.state / FILE_NAME).is_file():
        return {}
    try:
        with open_reader(subject.state, clock=time.time) as store:
            return refusals_of(store.counters.all())
    except FleetError:  # the check ``store`` says what is wrong with it
        return {}
