"""Devices: who is enrolled, by which key, with which tags, and what they said last.

enroll ─► enrolled ◄─► quarantined (quarantine, readmit)
             └──────────┴─► revoked ─► enroll again, by another key
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from fleet.errors import InputError
from fleet.federate.records import DeviceStatus
from server.registry import tables
from server.registry.keys import NEW_KEY, fingerprint
from server.registry.ledger import Ledger, Outcome, canonical, checked_text
from server.registry.records import Device, DeviceState
from server.registry.rows import checked_release, cleaned, devices_of, done

__all__ = ["LARGEST_TAGS", "Devices"]

LARGEST_TAGS = 32
"""Tags of one device."""
LARGEST_TAG = 64


class Devices:
    """The devices of a registry. Every change names its ``actor`` and may carry a ``key``.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, name: str) -> Device:
        """Return a device.

        Raises:
            InputError: ``no-such-device``.
        """
        with self._ledger.database.read() as connection:
            return _found(connection, name)

    def all(
        self, *, tag: str | None = None, state: DeviceState | None = None
    ) -> tuple[Device, ...]:
        """Return the devices, by name; only those with a tag or in a state where one is given."""
        kept, tags = tables.devices.c, tables.device_tags.c
        chosen = []
        if state is not None:
            chosen.append(kept.state == state.value)
        if tag is not None:
            chosen.append(kept.name.in_(select(tags.device).where(tags.tag == tag)))
        with self._ledger.database.read() as connection:
            return devices_of(connection, *chosen)

    def by_key(self, digest: str) -> Device | None:
        """Return the device whose present key has this fingerprint; None when nobody's has."""
        with self._ledger.database.read() as connection:
            found = devices_of(connection, tables.devices.c.fingerprint == digest)
        return found[0] if found else None

    def enroll(
        self,
        name: str,
        public_key: str,
        *,
        tags: Iterable[str] = (),
        why: str = "",
        actor: str,
        key: str | None = None,
    ) -> Device:
        """Enroll a device, or one that was revoked, by a new key.

        Raises:
            InputError: ``bad-name``, ``bad-key``, ``too-many-tags``, ``device-enrolled`` or
                ``key-enrolled`` for a key that any device has or had.
        """
        checked_text("device name", name)
        digest, wanted = fingerprint(public_key), _checked_tags(tags)

        def work(connection: Connection) -> Outcome[Device]:
            before = devices_of(connection, tables.devices.c.name == name)
            _check_new(connection, name, before, digest)
            now = self._ledger.clock()
            values = {
                "state": "enrolled",
                "fingerprint": digest,
                **done("enrolled", now, actor, why),
                **done("quarantined"),
                **done("revoked"),
            }
            row = {"fingerprint": digest, "device": name, "public_key": public_key.strip()}
            if before:
                _set(connection, name, values)
            else:
                connection.execute(insert(tables.devices).values(name=name, **values))
            connection.execute(insert(tables.device_keys).values(row))
            _retag(connection, name, add=wanted, remove=())
            return Outcome(_found(connection, name), name, {"fingerprint": digest})

        asked = {"device": name, "key": digest, "tags": wanted, "why": cleaned(why)}
        return self._ledger.change("device.enroll", asked, work, Device, actor=actor, key=key)

    def revoke(self, name: str, *, why: str, actor: str, key: str | None = None) -> Device:
        """Take a device's key away for good; changes nothing when that was done.

        Raises:
            InputError: ``no-such-device``.
        """
        return self._move("revoke", name, why, actor, key)

    def quarantine(self, name: str, *, why: str, actor: str, key: str | None = None) -> Device:
        """Keep a device out of rounds until it is readmitted; changes nothing when it is out.

        Raises:
            InputError: ``no-such-device`` or ``device-revoked``.
        """
        return self._move("quarantine", name, why, actor, key)

    def readmit(self, name: str, *, why: str, actor: str, key: str | None = None) -> Device:
        """Let a device that was in quarantine take part again; changes nothing when it may.

        Raises:
            InputError: ``no-such-device`` or ``device-revoked``.
        """
        return self._move("readmit", name, why, actor, key)

    def tag(
        self,
        name: str,
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        actor: str,
        key: str | None = None,
    ) -> Device:
        """Put tags on a device and take others off.

        Raises:
            InputError: ``no-such-device``, ``bad-name`` or ``too-many-tags``.
        """
        wanted, unwanted = _checked_tags(add), _checked_tags(remove)

        def change(connection: Connection, before: Device) -> None:
            left = (set(before.tags) | set(wanted)) - set(unwanted)
            _check_count(left)
            _retag(connection, name, add=left - set(before.tags), remove=unwanted)

        asked = {"device": name, "add": wanted, "remove": unwanted}
        return self._edit("device.tag", name, asked, change, actor, key)

    def pin(self, name: str, release: int | None, *, actor: str, key: str | None = None) -> Device:
        """Keep a device on a release, or let it follow the fleet again (None).

        Raises:
            InputError: ``no-such-device``, ``no-such-release`` or ``release-withdrawn``.
        """

        def change(connection: Connection, _: Device) -> None:
            if release is not None:
                checked_release(connection, release)
            _set(connection, name, {"pinned": release})

        asked = {"device": name, "release": release}
        return self._edit("device.pin", name, asked, change, actor, key)

    def seen(self, status: DeviceStatus) -> bool:
        """Keep what a device says of itself, and when; no decision, so no audit row.

        Returns:
            False for a device that is not enrolled; nothing is kept then.
        """
        values = {
            "seen_at_s": self._ledger.clock(),
            "status": canonical(status.model_dump(mode="json")),
            "serves": status.serves,
            "serves_release": status.release,
        }
        active = tables.devices.c.state != DeviceState.revoked.value
        return self._ledger.write(
            lambda connection: _set(connection, status.device, values, active)
        )

    def _move(self, verb: str, name: str, why: str, actor: str, key: str | None) -> Device:
        def change(connection: Connection, before: Device) -> None:
            now = self._ledger.clock()
            if before.state is not DeviceState.revoked:
                _move(connection, verb, before, (now, actor, why))
            elif verb != "revoke":
                raise InputError(
                    "device-revoked",
                    f"{name} was revoked; a revoked key never comes back",
                    f"{NEW_KEY}.",
                )

        asked = {"device": name, "why": cleaned(why)}
        return self._edit(f"device.{verb}", name, asked, change, actor, key)

    def _edit(
        self,
        verb: str,
        name: str,
        asked: Mapping[str, Any],
        change: Callable[[Connection, Device], None],
        actor: str,
        key: str | None,
    ) -> Device:
        def work(connection: Connection) -> Outcome[Device]:
            before = _found(connection, name)
            change(connection, before)
            after = _found(connection, name)
            return Outcome(after, name, changed=after != before)

        return self._ledger.change(verb, asked, work, Device, actor=actor, key=key)


def _found(connection: Connection, name: str) -> Device:
    found = devices_of(connection, tables.devices.c.name == name)
    if not found:
        raise InputError(
            "no-such-device",
            f"no device {name[:LARGEST_TAG]!r} was ever enrolled",
            "See which are: fleet device list",
        )
    return found[0]


def _set(
    connection: Connection, name: str, values: Mapping[str, Any], *where: ColumnElement[bool]
) -> bool:
    table = tables.devices
    change = update(table).where(table.c.name == name, *where).values(**values)
    return bool(connection.execute(change).rowcount)


def _move(connection: Connection, verb: str, before: Device, by: tuple[float, str, str]) -> None:
    if verb == "revoke":
        _set(connection, before.name, {"state": "revoked", **done("revoked", *by)})
        keys = tables.device_keys
        own = keys.c.fingerprint == before.fingerprint
        connection.execute(update(keys).where(own).values(revoked_at_s=by[0]))
    elif verb == "quarantine" and before.quarantined is None:
        _set(connection, before.name, {"state": "quarantined", **done("quarantined", *by)})
    elif verb == "readmit" and before.quarantined is not None:
        _set(connection, before.name, {"state": "enrolled", **done("quarantined")})


def _check_new(connection: Connection, name: str, before: tuple[Device, ...], digest: str) -> None:
    if before and before[0].state is not DeviceState.revoked:
        raise InputError(
            "device-enrolled",
            f"{name} is enrolled already, since its key {before[0].fingerprint[:16]}… was given",
            f"To change its key, revoke it first: fleet device revoke {name}",
        )
    keys = tables.device_keys.c
    owner = connection.execute(select(keys.device).where(keys.fingerprint == digest)).scalar()
    if owner is not None:
        raise InputError(
            "key-enrolled",
            f"the key {digest[:16]}… is or was {owner}'s; every enrolment has a key of its own",
            f"{NEW_KEY}.",
        )


def _checked_tags(tags: Iterable[str]) -> list[str]:
    wanted = sorted(set(tags))
    for tag in wanted:
        checked_text("tag", tag, LARGEST_TAG)
    _check_count(wanted)
    return wanted


def _check_count(tags: Collection[str]) -> None:
    if len(tags) > LARGEST_TAGS:
        raise InputError(
            "too-many-tags", f"a device has at most {LARGEST_TAGS} tags, not {len(tags)}"
        )


def _retag(connection: Connection, name: str, *, add: Iterable[str], remove: Iterable[str]) -> None:
    table = tables.device_tags
    gone = [*add, *remove]  # those to add as well: one that was there is no error
    connection.execute(delete(table).where(table.c.device == name, table.c.tag.in_(gone)))
    for tag in add:
        connection.execute(insert(table).values(device=name, tag=tag))
