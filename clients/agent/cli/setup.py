"""``fleet-device init | enroll | install-service``: what is done once per device."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shlex
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit, note
from clients.agent.cli.settled import DEFAULT_PORT, name_of, settled, wanted_config
from clients.agent.config import (
    CONFIG_FILE,
    PRIVATE_KEY,
    PUBLIC_KEY,
    DeviceConfig,
    Interpreters,
    load_config,
)
from clients.agent.pinned import read_keys
from clients.agent.service import AGENT_MODULE, Host, units_of
from fleet.errors import InputError, StorageError, UnavailableError
from fleet.federate.signing import public_keys
from fleet.files import atomic_path, write_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["enroll", "init", "install_service"]

UNIT_FOLDER = Path("/etc/systemd/system")


def init(
    name: Annotated[
        str, typer.Option("--name", help="Name of the device in the fleet; kept once it is given.")
    ] = "",
    state: StateOption = DEFAULT_STATE,
    server: Annotated[str, typer.Option(help="Server as HOST:PORT.")] = "",
    root_certificate: Annotated[
        Path | None, typer.Option(help="Root certificate of the server; it is copied.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="File of the base; it is copied.")] = None,
    release_key: Annotated[
        Path | None,
        typer.Option(help="The server's release-key.pub: releases it did not sign are refused."),
    ] = None,
    agent_python: Annotated[
        str, typer.Option(help="Python that has the device's torch; default: this one.")
    ] = "",
    bridge_python: Annotated[
        str, typer.Option(help="Python 3.11 or later that has Flower; default: this one.")
    ] = "",
    supernode_port: Annotated[
        int, typer.Option(help="Loopback port; a second device on one machine needs another.")
    ] = DEFAULT_PORT,
    form: FormatOption = Format.table,
) -> None:
    """Make the state directory (0700), the node's key pair (ECDSA P-384) and device.toml.

    A second init completes a first that was cut off; a key and a device.toml that are there stay.
    """
    from clients.agent.keys import make_keys

    state = state.expanduser().absolute()
    _check_given(root_certificate, base, release_key)
    keys = public_keys(read_keys(release_key)) if release_key is not None else None
    origin = str(base.absolute()) if base is not None else ""
    pythons = Interpreters.model_construct(agent=agent_python, bridge=bridge_python)
    wanted = wanted_config(name_of(name, state), server, origin, pythons, supernode_port)
    _make_folder(state)
    config = settled(wanted, keys, state)
    if not (state / PRIVATE_KEY).exists():
        make_keys(state, config.name)
    _copied(root_certificate, config.certificate_path(state))
    if base is not None:
        _install_base(base, state)
    data = {
        "name": config.name,
        "state": str(state),
        "config": str(state / CONFIG_FILE),
        "public_key": str(state / PUBLIC_KEY),
        "server": config.server,
        "release_key": config.release_key,
    }
    emit(data, form, lambda console: _show(console, data, _next(config, state / PUBLIC_KEY)))


init.examples = (  # type: ignore[attr-defined]  # the root prints it under the help
    "Examples:\n\nfleet-device init --name kitchen-1\n\n"
    "fleet-device init --name jetson-00 --server fleet.example:443 --root-certificate ca.crt"
    " --release-key release-key.pub\n\n"
    "Next: fleet-device enroll"
)


def enroll(
    state: StateOption = DEFAULT_STATE,
    form: FormatOption = Format.table,
) -> None:
    """Print the public key, and the exact commands by which the operator enrols it."""
    state = state.expanduser()
    config = load_config(state)
    path = state / PUBLIC_KEY
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(
            "no-key",
            f"the public key {path} cannot be read ({error.strerror})",
            f"Make it: fleet-device init --name {config.name}",
        ) from error
    if len(key.split()) < 2 or any(character in key for character in "\n'"):
        raise StorageError(
            "key-damaged", f"{path} is no public key of one line", "See: fleet-device doctor"
        )
    commands = [
        f"printf '%s\\n' '{key}' > {config.name}.pub",
        f"fleet device enroll {config.name}.pub --name {config.name}",
    ]
    data = {"name": config.name, "public_key": key, "operator_commands": commands}

    def show(console: Console) -> None:
        note(f"Public key of {config.name}:")
        console.print(key, markup=False, soft_wrap=True)
        note("\nThe operator runs, on the server:")
        for command in commands:
            console.print(command, markup=False, soft_wrap=True)

    emit(data, form, show)


enroll.examples = (  # type: ignore[attr-defined]
    "Examples:\n\nfleet-device enroll\n\nfleet-device enroll --format json"
)


def install_service(
    state: StateOption = DEFAULT_STATE,
    directory: Annotated[Path, typer.Option(help="Where the units go.")] = UNIT_FOLDER,
    user: Annotated[str, typer.Option(help="User that the services run as; default: you.")] = "",
    memory_max: Annotated[str, typer.Option(help="Memory limit of the agent, e.g. 2G.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print; write nothing.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Write the systemd units: agent, SuperNode, and the SuperNode's nightly restart."""
    state = state.expanduser().absolute()
    config = load_config(state)
    units = units_of(config, Host(state, _user(user), _memory(memory_max)))
    if not dry_run:
        _check_agent()
        for name, text in units.items():
            write_text(directory / name, text)
    names = " ".join(name for name in units if name != "corefleet-recycle.service")
    commands = ["sudo systemctl daemon-reload", f"sudo systemctl enable --now {names}"]
    written = None if dry_run else str(directory)
    data: dict[str, Any] = {"directory": written, "units": units, "commands": commands}

    def show(console: Console) -> None:
        for name, text in units.items() if dry_run else ():
            console.print(f"# {directory / name}\n{text}", markup=False, soft_wrap=True)
        note("Not written (--dry-run)." if dry_run else f"Written to {directory}. Next:")
        for command in () if dry_run else commands:
            console.print(command, markup=False, soft_wrap=True)

    emit(data, form, show)


install_service.examples = (  # type: ignore[attr-defined]
    "Examples:\n\nfleet-device install-service --dry-run\n\n"
    "fleet-device install-service --directory /etc/systemd/system --user corefleet"
)


def _check_given(*files: Path | None) -> None:
    for given in files:
        if given is not None and not given.is_file():
            raise InputError("file-missing", f"there is no file {given}", "")


def _next(config: DeviceConfig, key: Path) -> str:
    if not config.server:
        return "Next: fleet-device ingest FILE --person NAME"
    words = ["fleet", "device", "enroll", str(key), "--name", config.name]
    return f"Next, on the server: {shlex.join(words)}"


def _install_base(base: Path, state: Path) -> None:
    try:
        from clients.agent.serving.serve import Serving
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "extra-missing",
            f"a base is checked with torch; the module {error.name} is not installed",
            "Use a Python that has the device's torch; see: fleet-device doctor",
        ) from error
    Serving(state).install_base(base)


def _make_folder(state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(state.stat().st_mode) & 0o077:
            os.chmod(state, 0o700)
    except OSError as error:
        raise StorageError(
            "write-failed",
            f"the state directory {state} cannot be made ({error.strerror})",
            "Choose another with --state.",
        ) from error


def _copied(source: Path | None, target: Path) -> None:
    if source is None or (target.exists() and source.samefile(target)):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _user(given: str) -> str:
    name = given or getpass.getuser()
    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError("user-name", f"{name!r} is no name of a user", "")
    return name


def _memory(given: str) -> str:
    if given and not (given.rstrip("KMGT%").isdigit() and len(given) <= 16):
        raise InputError("memory-max", f"{given!r} is no size such as 512M or 2G", "")
    return given


def _check_agent() -> None:
    if importlib.util.find_spec(AGENT_MODULE) is None:
        # A unit that cannot start would be restarted for ever.
        raise UnavailableError(
            "agent-missing",
            f"this installation has no {AGENT_MODULE}, which the agent's unit starts",
            "Upgrade corefleet; --dry-run shows the units without it.",
        )


def _show(console: Console, data: dict[str, str], end: str) -> None:
    for key, value in data.items():
        console.print(f"{key:<12} {value}", markup=False, soft_wrap=True)
    note(end)
