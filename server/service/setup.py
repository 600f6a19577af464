"""A server's folder, made once and completed by every later call."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from fleet.errors import InputError
from fleet.federate.signing import make_key, public_of
from fleet.files import write_bytes, write_text
from fleet.tables import Table
from server.service.authority import Pair, is_due, make_authority, sign_server
from server.service.config import (
    ControlApi,
    Front,
    ServerConfig,
    Service,
    SuperLink,
    load_config,
    save_config,
)
from server.service.folder import CONNECTION, ServerFolder, read_bytes, write_private

__all__ = ["Wanted", "made", "renewed"]

SECRET_BYTES = 32
EVERYWHERE, HERE = "0.0.0.0", "127.0.0.1"


@dataclass(frozen=True)
class Wanted:
    """What ``fleet server init`` was asked for.

    Args:
        names: Host names and addresses that devices call; with one, all interfaces are served.
        port: Of the front; 0: as it is, or the default.
        superlink_port: Of the SuperLink on loopback; 0: as it is, or the default.
        renew: Whether to sign a new certificate although the old one is good.
        standing: Whether ``up`` keeps a standing service going; ``None``: as it is, or not.
        control: ``HOST:PORT`` of the control API; ``""``: as it is, or none.
    """

    names: Sequence[str] = ()
    port: int = 0
    superlink_port: int = 0
    renew: bool = False
    standing: bool | None = None
    control: str = ""


def made(folder: ServerFolder, wanted: Wanted, now: datetime) -> ServerConfig:
    """Make what is missing of a server: configuration, authority, certificate, secret, connection.

    What is there stays, since devices trust the authority and know the address.

    Raises:
        InputError: ``host-name``, ``server-config``, ``authority-incomplete``,
            ``release-key-incomplete`` or ``release-key``.
        StorageError: When a file could not be read or written.
    """
    folder.make()
    before = load_config(folder) if folder.config.exists() else None
    config = _settled(before, wanted)
    if folder.authority.exists() != folder.authority_key.exists():
        raise InputError(
            "authority-incomplete",
            f"of {folder.authority.name} and {folder.authority_key.name} one is missing",
            "Bring it back from a backup, or remove the other: devices then need the new ca.crt.",
        )
    if folder.release_public.exists() and not folder.release_key.exists():
        raise InputError(
            "release-key-incomplete",
            f"{folder.release_public.name} is there and {folder.release_key.name} is missing",
            f"Bring it back, e.g. from a backup with keys; or remove {folder.release_public.name}"
            " for a new pair: devices that trust the old one must then trust the new one.",
        )
    if not folder.authority.exists():
        authority = make_authority(now)
        write_private(folder.authority_key, authority.key)
        write_bytes(folder.authority, authority.certificate)
    renewed(folder, config, now, anyway=wanted.renew)
    if not folder.superexec_secret.exists():
        write_private(folder.superexec_secret, secrets.token_hex(SECRET_BYTES).encode())
    if not folder.release_key.exists():
        write_private(folder.release_key, make_key())
    public = public_of(read_bytes(folder.release_key))
    if not folder.release_public.exists() or read_bytes(folder.release_public) != public:
        write_bytes(folder.release_public, public)
    write_text(folder.connection, _connection(folder, config))
    if config != before:  # last: a folder with a configuration is whole
        save_config(config, folder)
    return config


def renewed(
    folder: ServerFolder, config: ServerConfig, now: datetime, *, anyway: bool = False
) -> bool:
    """Sign a new server certificate if the old one expires soon or lacks a name.

    Args:
        folder: Of the server.
        config: Names in it.
        now: The time, with its zone.
        anyway: Sign one although the old one is good.

    Returns:
        Whether one was signed; whoever serves the old one has to be started again.
    """
    is_there = folder.certificate.exists() and folder.key.exists()
    good = is_there and not is_due(read_bytes(folder.certificate), config.front.names, now)
    if good and not anyway:
        return False
    authority = Pair(read_bytes(folder.authority), read_bytes(folder.authority_key))
    pair = sign_server(authority, config.front.names, now)
    # A crash in between leaves a pair that does not fit, which is_there does not see; so first out.
    folder.certificate.unlink(missing_ok=True)
    write_private(folder.key, pair.key)
    write_bytes(folder.certificate, pair.certificate)
    return True


def _settled(before: ServerConfig | None, wanted: Wanted) -> ServerConfig:
    old = before or ServerConfig()
    names = tuple(dict.fromkeys([*old.front.names, *wanted.names]))
    host = old.front.host
    if before is None:
        host = EVERYWHERE if wanted.names else HERE
    elif wanted.names and host == HERE:
        host = EVERYWHERE
    front = old.front.model_dump() | {
        "names": names,
        "host": host,
        "port": wanted.port or old.front.port,
    }
    superlink = {"port": wanted.superlink_port or old.superlink.port}
    if front["port"] == superlink["port"]:
        raise InputError(
            "same-port",
            f"front and SuperLink cannot both have port {front['port']}",
            "Choose another: --port or --superlink-port.",
        )
    parts: dict[str, Table] = {"front": Front(**front), "superlink": SuperLink(**superlink)}
    if wanted.standing is not None:
        parts["service"] = Service(standing=wanted.standing)
    if wanted.control:
        parts["control"] = _listening(wanted.control)
    return old.model_copy(update=parts)


def _listening(address: str) -> ControlApi:
    try:
        return ControlApi(listen=address)
    except ValidationError as error:
        raise InputError(
            "control-address", f"{address!r} is no HOST:PORT", "For example --control 0.0.0.0:9443."
        ) from error


def _connection(folder: ServerFolder, config: ServerConfig) -> str:
    """Return Flower's configuration, by which ``flwr`` reaches the SuperLink."""
    root = _quoted(folder.authority)
    lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]"]
    lines += [f'address = "{config.superlink_address}"', f"root-certificates = {root}"]
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    text = str(path)
    if any(ord(character) < 32 or character in "'\x7f" for character in text):
        raise InputError("folder-name", f"{text!r} may not stand in a configuration", "Move it.")
    return f"'{text}'"
