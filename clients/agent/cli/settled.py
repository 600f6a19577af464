"""The configuration that ``fleet-device init`` makes, or completes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.agent.cli.render import note
from clients.agent.config import (
    CONFIG_FILE,
    DeviceConfig,
    Interpreters,
    load_config,
    parse_config,
    render_config,
    save_config,
)
from clients.agent.pinned import pin, pinned_keys, write_keys
from fleet.errors import InputError

__all__ = ["DEFAULT_PORT", "name_of", "settled", "wanted_config"]

DEFAULT_PORT: int = DeviceConfig.model_fields["supernode_port"].default


def name_of(given: str, state: Path) -> str:
    """Return the name that was given, else that of the device which is there.

    Raises:
        InputError: ``name-missing``.
    """
    if given:
        return given
    if (state / CONFIG_FILE).exists():
        return load_config(state).name
    raise InputError(
        "name-missing", "a new device needs a name: --name", "fleet-device init --name kitchen-1"
    )


def wanted_config(
    name: str, server: str, base: str, pythons: Interpreters, supernode_port: int
) -> DeviceConfig:
    """Return a new device's configuration.

    Raises:
        InputError: ``device-config`` with every broken rule.
    """
    made = DeviceConfig.model_construct(
        name=name, server=server, base=base, interpreters=pythons, supernode_port=supernode_port
    )
    # Read back as a file would be, so that all wrong values are told before anything is made.
    return parse_config(render_config(made), "the command line")


def settled(wanted: DeviceConfig, keys: Mapping[str, bytes] | None, state: Path) -> DeviceConfig:
    """Write the configuration, or complete the one that is there: what was decided stays.

    Args:
        wanted: What the command line says.
        keys: Release keys to pin (PEM, by id); None for none.
        state: State directory, which is there.

    Returns:
        The configuration as it is on disk now. What is refused has changed nothing.

    Raises:
        InputError: ``device-exists`` under another name, ``release-key-pinned`` where others are.
    """
    if not (state / CONFIG_FILE).exists():
        if keys is None:
            save_config(wanted, state)
            return wanted
        return pin(keys, wanted, state)
    present = load_config(state)
    if present.name != wanted.name:
        raise InputError(
            "device-exists",
            f"{state} is the device {present.name}, not {wanted.name}",
            "Choose another folder with --state, or edit device.toml.",
        )
    added: dict[str, Any] = {}
    if wanted.server and not present.server:
        added["server"] = wanted.server
    if present.supernode_port == DEFAULT_PORT != wanted.supernode_port:
        added["supernode_port"] = wanted.supernode_port
    if keys is not None and not _are_pinned(keys, present, state):
        added["release_key"] = write_keys(keys, state)
    if added:
        present = present.model_copy(update=added)
        save_config(present, state)
    if wanted.server not in ("", present.server):
        note(f"{CONFIG_FILE} is kept: its server is {present.server or 'none'}; edit it there.")
    if wanted.supernode_port not in (DEFAULT_PORT, present.supernode_port):
        note(f"{CONFIG_FILE} is kept: its supernode-port is {present.supernode_port}.")
    return present


def _are_pinned(keys: Mapping[str, bytes], config: DeviceConfig, state: Path) -> bool:
    """Tell whether the keys are pinned; refuse others: whom it trusts is not changed in passing."""
    before = pinned_keys(config, state)
    if before and before.keys() != keys.keys():
        raise InputError(
            "release-key-pinned",
            f"{config.name} takes releases by {', '.join(before)}, not by {', '.join(keys)}",
            "Change it on purpose: fleet-device trust release-key.pub --yes",
        )
    return bool(before)
