"""The pinned release keys: whose releases the device trains from, judges and serves.

A file of public keys (PEM) in the state directory, named in ``device.toml``. Only whoever may write
there can change them; nothing that comes over the wire does. A configuration that names a file
which cannot be read trusts nobody, rather than everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clients.agent.config import DeviceConfig, save_config
from fleet.errors import InputError
from fleet.federate.signing import MAX_KEY_BYTES, public_keys
from fleet.files import write_bytes

__all__ = [
    "COUNTED",
    "REFUSED",
    "RELEASE_KEY",
    "pin",
    "pinned_keys",
    "read_keys",
    "refusals_of",
    "write_keys",
]

RELEASE_KEY = "release-key.pub"
COUNTED = "releases-refused."
"""Prefix of the store's counters of refused releases, by their reasons."""
REFUSED = "release.refused"
"""What is kept of a refusal until a release is taken: number, reason, detail and when."""
TRUST = "Pin the server's again: fleet-device trust release-key.pub"


def pinned_keys(config: DeviceConfig, state: Path) -> dict[str, bytes]:
    """Return the pinned public keys (PEM) by their ids; empty when releases are not verified.

    Raises:
        InputError: ``release-key-missing`` or ``release-key``: no release can be verified.
        UnavailableError: ``extra-missing`` without the package cryptography.
    """
    path = config.release_key_path(state)
    return {} if path is None else public_keys(read_keys(path))


def read_keys(path: Path) -> bytes:
    """Read a file of public keys.

    Raises:
        InputError: ``release-key-missing``, also for a file beyond ``MAX_KEY_BYTES``.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise InputError(
            "release-key-missing", f"{path} cannot be read ({error.strerror})", TRUST
        ) from error
    if len(content) > MAX_KEY_BYTES:
        raise InputError(
            "release-key-missing", f"{path} has more than {MAX_KEY_BYTES} bytes", TRUST
        )
    return content


def refusals_of(counters: Mapping[str, int]) -> dict[str, int]:
    """Return how many releases were refused, by reason, of a store's counters."""
    return {
        name.removeprefix(COUNTED): count
        for name, count in counters.items()
        if name.startswith(COUNTED)
    }


def pin(keys: Mapping[str, bytes], config: DeviceConfig, state: Path) -> DeviceConfig:
    """Pin public keys (PEM, by id) in place of those before; return the new configuration.

    Raises:
        StorageError: When a file could not be written.
    """
    # First the keys: cut off in between, the device trusts as before or has the new ones.
    release_key = write_keys(keys, state)
    if config.release_key == release_key:
        return config
    config = config.model_copy(update={"release_key": release_key})
    save_config(config, state)
    return config


def write_keys(keys: Mapping[str, bytes], state: Path) -> str:
    """Write public keys (PEM, by id); return what a configuration that pins them calls the file.

    Raises:
        StorageError: When it could not be written.
    """
    write_bytes(state / RELEASE_KEY, b"".join(keys.values()))
    return RELEASE_KEY
