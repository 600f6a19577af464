"""Which MQTT broker, which topic, as whom: read from a URL and a file, without a connection."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fleet.errors import FleetError, InputError

__all__ = ["Broker", "BrokerError", "broker_of", "client_id_of", "with_credentials"]

PORTS = {"mqtt": 1883, "mqtts": 8883}
LARGEST_TOPIC = 65_535  # bytes; MQTT's own limit of a text
LARGEST_CREDENTIALS = 4096
EXAMPLE = "Example: mqtt://broker.example/sensors/waist"


class BrokerError(FleetError):
    """A broker that cannot be reached, or that refuses this device."""

    exit_code = 2


@dataclass(frozen=True)
class Broker:
    """An MQTT broker, and as whom a device goes to it.

    Args:
        host: Name or address.
        port: TCP port.
        tls: Whether the connection is encrypted and the broker's certificate checked.
        ca: PEM file of the roots to trust; None takes the system's.
        user: User name; empty goes there without one.
        password: Its password.
    """

    host: str
    port: int
    tls: bool = False
    ca: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"


def broker_of(url: str, ca: Path | None = None) -> tuple[Broker, str]:
    """Read ``mqtt://HOST[:PORT]/TOPIC``, or ``mqtts://`` for TLS.

    The path is the topic filter: percent-decoded, and ``+``, ``#`` and ``?`` may stand as they are.

    Args:
        url: What was typed.
        ca: PEM file of the roots to trust; only with ``mqtts``.

    Raises:
        InputError: ``bad-broker``, or ``bad-topic`` for a filter that MQTT does not allow.

    >>> broker_of("mqtt://localhost/home/+/imu")
    (Broker(host='localhost', port=1883, tls=False, ca=None, user=''), 'home/+/imu')
    """
    try:
        # In a topic these begin no fragment and no query.
        parts = urlsplit(url.replace("#", "%23").replace("?", "%3F"))
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError("bad-broker", f"{url!r} is no URL: {error}", EXAMPLE) from error
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "bad-broker",
            "a broker's URL must hold no user and no password: every process here can read it",
            "Write both into a file of your own, permissions 0600, and name it: --credentials FILE",
        )
    if parts.scheme not in PORTS or not host or port == 0:
        raise InputError(
            "bad-broker", f"a broker is mqtt://HOST:PORT/TOPIC or mqtts://…, not {url!r}", EXAMPLE
        )
    tls = parts.scheme == "mqtts"
    if ca is not None and not tls:
        raise InputError(
            "bad-broker", "a root certificate needs mqtts://, not mqtt://", "mqtts has port 8883."
        )
    topic = unquote(parts.path[1:], errors="replace")
    _check_topic(topic)
    return Broker(host, port or PORTS[parts.scheme], tls, ca), topic


def _check_topic(topic: str) -> None:
    levels = topic.split("/")
    wrong = (
        not topic
        or "\0" in topic
        or "\ufffd" in topic
        or len(topic.encode("utf-8")) > LARGEST_TOPIC
        or any("+" in level and level != "+" for level in levels)
        or any("#" in level and level != "#" for level in levels)
        or "#" in levels[:-1]
    )
    if wrong:
        raise InputError(
            "bad-topic",
            f"a topic filter has 1 to {LARGEST_TOPIC} bytes, + as a whole level, # as the last"
            f" one; {topic[:200]!r} breaks that",
            EXAMPLE,
        )


def with_credentials(broker: Broker, path: Path) -> Broker:
    """Add user and password from a file: the user on its first line, the password on its second.

    Args:
        broker: Where they are for.
        path: UTF-8, readable by its owner alone.

    Raises:
        InputError: ``credentials-open`` when others may read it, ``credentials-unreadable``.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = file.read(LARGEST_CREDENTIALS).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("credentials-unreadable", f"{path} cannot be read: {error}") from error
    if mode & 0o077:
        raise InputError(
            "credentials-open",
            f"{path} has permissions {mode:04o}; a password must be its owner's alone",
            f"chmod 600 {path}",
        )
    if len(lines) != 2 or not lines[0]:
        raise InputError(
            "credentials-unreadable",
            f"{path} has {len(lines)} lines; it needs the user on the first, the password on the"
            " second",
        )
    return replace(broker, user=lines[0], password=lines[1])


def client_id_of(device: str, name: str, topic: str) -> str:
    """Name a device's subscription to its broker, the same one after every start.

    The topic is part of it, since a broker's session keeps the topics of before. Every broker takes
    an identifier of this length and of these letters.

    >>> client_id_of("kitchen-1", "waist", "sensors/waist")
    'fleet-3fb1b2a5fb1dbd3e'
    """
    text = "\0".join((device, name, topic))
    return f"fleet-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
