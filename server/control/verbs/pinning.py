"""A pin of one device or of all with a tag: one transaction, one row of the audit for all."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from server.control import requests as r
from server.control.verbs.fleet import Fleet
from server.registry import tables
from server.registry.ledger import Ledger, Outcome
from server.registry.records import DeviceState
from server.registry.rows import checked_release, cleaned

__all__ = ["pinned"]


def pinned(fleet: Fleet, actor: str, asked: r.ReleasePin) -> list[str]:
    """Pin what is asked for; all devices or, when anything fails, none.

    Returns:
        The devices whose pin changed, by name; the same again for the same idempotency key.

    Raises:
        InputError: ``no-such-release`` or ``release-withdrawn``.
    """
    kept = tables.devices

    def work(connection: Connection) -> Outcome[list[str]]:
        if asked.release is not None:
            checked_release(connection, asked.release)
        changing = _chosen(asked) & kept.c.pinned.is_distinct_from(asked.release)
        names = sorted(connection.execute(select(kept.c.name).where(changing)).scalars())
        connection.execute(update(kept).where(changing).values(pinned=asked.release))
        return Outcome(names, asked.device or f"tag {asked.tag}", {"devices": names}, bool(names))

    request: dict[str, Any] = asked.model_dump(include={"release", "device", "tag"})
    ledger = Ledger(fleet.registry.database, fleet.clock)
    return ledger.change(
        "device.pin",
        {**request, "why": cleaned(asked.why)},
        work,
        list[str],
        actor=actor,
        key=asked.key,
    )


def _chosen(asked: r.ReleasePin) -> ColumnElement[bool]:
    kept, tags = tables.devices.c, tables.device_tags.c
    if asked.device:
        return kept.name == asked.device
    tagged = kept.name.in_(select(tags.device).where(tags.tag == asked.tag))
    return tagged & (kept.state != DeviceState.revoked.value)
