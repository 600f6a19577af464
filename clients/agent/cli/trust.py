"""``fleet-device trust``: whose releases this device takes, pinned by its owner's hand alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit
from clients.agent.config import load_config
from clients.agent.pinned import pin, pinned_keys, read_keys
from fleet.errors import InputError
from fleet.federate.signing import public_keys

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["trust"]


def trust(
    file: Annotated[
        Path | None,
        typer.Argument(help="The server's release-key.pub (PEM); without it: show what is pinned."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Pin it in place of another key that is pinned.")
    ] = False,
    state: StateOption = DEFAULT_STATE,
    form: FormatOption = Format.table,
) -> None:
    """Pin the key that signs the fleet's releases: others' are refused from then on.

    The agent follows without a restart. A file may hold up to 4 keys, e.g. the server's new one and
    the one before; releases by either are taken. To verify none again, empty release-key in
    device.toml.
    """
    state = state.expanduser()
    config = load_config(state)
    wanted = None if file is None else public_keys(read_keys(file))
    # What is pinned may be what is broken; a new key is how that is put right.
    before = pinned_keys(config, state) if wanted is None else _before(config.release_key, state)
    changed = wanted is not None and set(wanted) != set(before)
    if changed and before and not yes:
        assert wanted is not None
        raise InputError(
            "not-confirmed",
            f"{config.name} takes releases by {_ids(before)} only; by {_ids(wanted)} only, it takes"
            " none of the former that it does not hold",
            f"fleet-device trust {file} --yes",
        )
    if wanted is not None:
        config = pin(wanted, config, state)
    path = config.release_key_path(state)
    data: dict[str, Any] = {
        "name": config.name,
        "keys": list(before if wanted is None else wanted),
        "file": None if path is None else str(path),
        "changed": changed,
    }
    emit(data, form, lambda console: _show(console, data))


trust.examples = (  # type: ignore[attr-defined]  # the root prints it under the help
    "Examples:\n\nfleet-device trust release-key.pub\n\nfleet-device trust\n\n"
    "fleet-device trust new-key.pub --yes\n\nNext: fleet-device doctor --only release-key"
)


def _before(named: str, state: Path) -> list[str]:
    """Return the ids of the keys that are pinned; one that cannot be read has its file's name."""
    if not named:
        return []
    try:
        return list(public_keys(read_keys(state / named)))
    except InputError:
        return [f"{named}, which cannot be read"]


def _ids(keys: Any) -> str:
    return " or ".join(keys)


def _show(console: Console, data: dict[str, Any]) -> None:
    if not data["keys"]:
        line = "releases are not verified: no key pinned"
    else:
        line = f"{data['name']} takes releases signed by {_ids(data['keys'])} ({data['file']})"
    console.print(line, markup=False, soft_wrap=True)
