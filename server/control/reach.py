"""How a command reaches a fleet: this machine's registry, or a server's control API.

--connect ──► a server; certificates by options, or from the profile
--folder, COREFLEET_SERVER ──► the registry of this machine
neither: the profile where there is one, else the default folder
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fleet.errors import InputError
from fleet.federate.records import problems_of
from fleet.files import write_text
from fleet.tables import Table
from server.control.seam import Verbs
from server.control.user import user
from server.service.folder import DEFAULT_FOLDER, ServerFolder, read_bytes

if TYPE_CHECKING:
    from server.control.verbs.fleet import Fleet

__all__ = [
    "PROFILE",
    "PROFILE_VARIABLE",
    "Profile",
    "Reach",
    "opened_fleet",
    "registry_place",
    "save_profile",
]

PROFILE = Path("~/.config/corefleet/control.toml")
PROFILE_VARIABLE = "COREFLEET_CONTROL"
REGISTRY = "registry.sqlite"
BACKUPS = "backups"


class Profile(Table):
    """A server, and who one is there; paths are relative to the file."""

    connect: str = ""
    certificate: str = ""
    key: str = ""
    root: str = ""


@dataclass(frozen=True)
class Reach:
    """Which fleet a command is for.

    Args:
        folder: Of a server on this machine; None where none was named.
        connect: ``HOST:PORT`` of a control API; empty where none was named.
        certificate: The operator's certificate (PEM).
        key: Its private key (PEM).
        root: Certificate (PEM) of the server's authority.
    """

    folder: Path | None = None
    connect: str = ""
    certificate: Path | None = None
    key: Path | None = None
    root: Path | None = None

    def open(self) -> Verbs:
        """Open the fleet.

        Raises:
            InputError: ``no-server``, ``control-profile`` or ``control-certificate``.
            StorageError: ``unreadable``, or the registry's own.
        """
        if self.connect:
            return _remote(self, _profile())
        if self.folder is not None:
            return _local(self.folder)
        profile = _profile()
        return _remote(self, profile) if profile.connect else _local(DEFAULT_FOLDER)


def registry_place(folder: ServerFolder) -> str | Path:
    """Return where a server's registry is: a database's URL, or a file in its folder.

    Raises:
        InputError: ``no-server`` or ``server-config``.
    """
    from server.service.config import load_config

    return load_config(folder).database or folder.path / REGISTRY


def opened_fleet(folder: ServerFolder) -> Fleet:
    """Open what a server's folder holds; the caller closes its registry.

    Raises:
        InputError: ``no-server``, ``server-config`` or ``release-key``.
        StorageError: See ``open_registry``.
    """
    from fleet.federate.signing import public_of
    from server.control.nodes import SuperLinkNodes
    from server.control.verbs.fleet import Fleet
    from server.registry import open_registry
    from server.service.config import load_config

    config, signing = load_config(folder), folder.release_key
    public = public_of(read_bytes(signing)) if signing.is_file() else None
    if public is None and folder.release_public.is_file():  # a backup without keys was restored
        public = read_bytes(folder.release_public)
    return Fleet(
        registry=open_registry(registry_place(folder), clock=time.time),
        clock=time.time,
        nodes=SuperLinkNodes(config.superlink_address, folder.authority),
        release_public=public,
        backups=folder.path / BACKUPS,
    )


def save_profile(path: Path, profile: Profile) -> None:
    """Write a profile durably."""
    values = profile.model_dump()
    text = "".join(f"{name} = '{value}'\n" for name, value in values.items())
    write_text(path, f"# How `fleet` reaches this server; see docs/operate.md.\n{text}")


def _local(path: Path) -> Verbs:
    from server.control.local import LocalVerbs

    folder = ServerFolder(path.expanduser().absolute())
    return LocalVerbs(opened_fleet(folder), user())


def _remote(reach: Reach, profile: Profile) -> Verbs:
    from server.control.remote import RemoteVerbs, Trust
    from server.service.authority import Pair

    where = _profile_path().parent
    names = ("certificate", "key", "root")
    files = {
        name: getattr(reach, name) or (where / found if (found := getattr(profile, name)) else None)
        for name in names
    }
    if lacking := [f"--{name}" for name in names if files[name] is None]:
        raise InputError(
            "control-certificate",
            f"a control API asks who comes: {', '.join(lacking)} is missing",
            "An admin of the server makes them: fleet operator issue NAME --role ROLE",
        )
    read = {name: read_bytes(path.expanduser()) for name, path in files.items() if path}
    trust = Trust(Pair(read["certificate"], read["key"]), read["root"])
    return RemoteVerbs(reach.connect or profile.connect, trust)


def _profile_path() -> Path:
    return Path(os.environ.get(PROFILE_VARIABLE) or PROFILE).expanduser().absolute()


def _profile() -> Profile:
    import tomllib

    path, named = _profile_path(), bool(os.environ.get(PROFILE_VARIABLE))
    if not path.is_file() and not named:
        return Profile()
    try:
        return Profile.model_validate(tomllib.loads(read_bytes(path).decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _no_profile(path, f"it is no TOML: {error}") from error
    except ValidationError as error:
        raise _no_profile(path, problems_of(error)) from error


def _no_profile(path: Path, why: str) -> InputError:
    return InputError(
        "control-profile",
        f"{path} breaks a rule: {why}",
        "Its keys are connect, certificate, key and root.",
    )
