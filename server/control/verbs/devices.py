"""Verbs about devices."""

from __future__ import annotations

from collections.abc import Mapping

from fleet.errors import FleetError, InputError
from server.control import requests as r
from server.control.seam import Answer
from server.control.verbs.fleet import Fleet
from server.control.verbs.life import life
from server.control.verbs.shortage import shortage
from server.control.verbs.shown import shown_device
from server.control.verbs.touched import rounds_of, touched
from server.control.verbs.why import sentence
from server.registry.keys import fingerprint
from server.registry.records import Device, DeviceState

__all__ = [
    "checked_name",
    "enroll",
    "listed",
    "quarantine",
    "readmit",
    "revoke",
    "show",
    "tag",
    "why",
]

# As in the configuration of a device.
NAME_LENGTH = 64


def listed(fleet: Fleet, actor: str, asked: r.DeviceList) -> Answer:
    """List devices by name."""
    state = DeviceState(asked.state) if asked.state else None
    current = fleet.registry.releases.current()
    found = fleet.registry.devices.all(tag=asked.tag or None, state=state)
    links = _links(fleet)
    shown = [
        shown_device(device, current) | {"link": links.get(device.name)}
        for device in found
        if asked.state or asked.revoked or device.state is not DeviceState.revoked
    ]
    return Answer({"devices": shown, **life(fleet).record()})


def show(fleet: Fleet, actor: str, asked: r.DeviceShow) -> Answer:
    """Show one device."""
    return _answer(fleet, fleet.registry.devices.get(asked.device))


def why(fleet: Fleet, actor: str, asked: r.DeviceWhy) -> Answer:
    """Tell in one sentence how a device stands to the last round and to its release."""
    device = fleet.registry.devices.get(asked.device)
    return Answer(sentence(fleet, device))


def enroll(fleet: Fleet, actor: str, asked: r.DeviceEnroll) -> Answer:
    """Enrol a device; done again, it completes what was cut off.

    Raises:
        InputError: See ``Devices.enroll``.
        FleetError: The transport does not answer; nothing was kept, or asking again completes it.
    """
    checked_name(asked.device)
    if fleet.nodes is not None:
        fleet.nodes.check(asked.public_key, asked.device)
    device = _same_again(fleet, asked) or fleet.registry.devices.enroll(
        asked.device,
        asked.public_key,
        tags=asked.tags,
        why=asked.why,
        actor=actor,
        key=asked.key,
    )
    node = None
    if fleet.nodes is not None:
        node = fleet.nodes.enroll(device.public_key, device.name)
    public = fleet.release_public.decode() if fleet.release_public is not None else None
    return Answer({**_answer(fleet, device).data, "node": node, "release_key": public})


def revoke(fleet: Fleet, actor: str, asked: r.DeviceRevoke) -> Answer:
    """Revoke a device: first for rounds, then for the transport; done again, it completes both."""
    device = fleet.registry.devices.get(asked.device)
    reach = touched([device.name], (), rounds_of(fleet, device.name))
    if not asked.dry_run:
        device = fleet.registry.devices.revoke(
            device.name, why=asked.why, actor=actor, key=asked.key
        )
        if fleet.nodes is not None:
            fleet.nodes.revoke(device.public_key, device.name)
    return _destroyed(fleet, device, asked, reach)


def quarantine(fleet: Fleet, actor: str, asked: r.DeviceQuarantine) -> Answer:
    """Keep a device out of rounds."""
    device = fleet.registry.devices.get(asked.device)
    reach = touched([device.name], (), rounds_of(fleet, device.name))
    if not asked.dry_run:
        device = fleet.registry.devices.quarantine(
            device.name, why=asked.why, actor=actor, key=asked.key
        )
    return _destroyed(fleet, device, asked, reach)


def readmit(fleet: Fleet, actor: str, asked: r.DeviceReadmit) -> Answer:
    """Let a device take part again."""
    devices = fleet.registry.devices
    done = devices.readmit(asked.device, why=asked.why, actor=actor, key=asked.key)
    return _answer(fleet, done)


def tag(fleet: Fleet, actor: str, asked: r.DeviceTag) -> Answer:
    """Put tags on a device and take others off.

    Raises:
        InputError: ``nothing-asked`` without a tag.
    """
    if not asked.add and not asked.remove:
        raise InputError(
            "nothing-asked", "a change of tags names at least one", "Use --add TAG or --remove TAG."
        )
    done = fleet.registry.devices.tag(
        asked.device, add=asked.add, remove=asked.remove, actor=actor, key=asked.key
    )
    return _answer(fleet, done)


def checked_name(name: str) -> None:
    """Refuse a name that no device can have.

    Raises:
        InputError: ``device-name``.
    """
    plain = name.isascii() and name[:1].isalnum()
    letters = all(character.isalnum() or character in "-._" for character in name)
    if not (plain and letters and len(name) <= NAME_LENGTH):
        raise InputError(
            "device-name",
            f"a name has 1 to {NAME_LENGTH} letters, digits, . _ and -, not {name[:80]!r}",
            "Use the name of the device's own configuration.",
        )


def _links(fleet: Fleet) -> Mapping[str, str]:
    """Return how devices stand; nothing where the transport does not answer."""
    try:
        return {} if fleet.nodes is None else fleet.nodes.links()
    except FleetError:
        return {}


def _same_again(fleet: Fleet, asked: r.DeviceEnroll) -> Device | None:
    """Return the device when it is enrolled by this very key."""
    owner = fleet.registry.devices.by_key(fingerprint(asked.public_key))
    same = owner is not None and owner.name == asked.device
    return owner if same and owner is not None and owner.revoked is None else None


def _answer(fleet: Fleet, device: Device) -> Answer:
    return Answer({"device": shown_device(device, fleet.registry.releases.current())})


def _destroyed(
    fleet: Fleet, device: Device, asked: r.Destruction, reach: dict[str, object]
) -> Answer:
    shown = shown_device(device, fleet.registry.releases.current())
    data = {"dry_run": asked.dry_run, "touches": reach, "device": shown}
    return Answer({**data, "shortage": shortage(fleet, device)})
