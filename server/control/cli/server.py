"""``fleet server``: make a server, run it, look after it."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from fleet.commands import error_envelope
from fleet.errors import FleetError
from server.control.cli.render import Format, FormatOption, emit
from server.service.folder import DEFAULT_FOLDER, ServerFolder

if TYPE_CHECKING:
    from rich.console import Console

    from fleet.supervise.told import Tell, Told
    from server.service.config import ServerConfig

__all__ = ["FolderOption", "app", "folder_of"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

FolderOption = Annotated[
    Path, typer.Option("--folder", envvar="COREFLEET_SERVER", help="Folder of the server.")
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port that devices call.")]


@app.callback()
def group() -> None:
    """Make a server for a fleet, run it, and look after it."""


@app.command(
    epilog="Examples:\n\nfleet server init\n\nfleet server init --host fleet.example --port 8443"
    "\n\nNext: fleet server up"
)
def init(
    folder: FolderOption = DEFAULT_FOLDER,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which devices reach this machine; repeatable."),
    ] = None,
    port: PortOption = 0,
    superlink_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the SuperLink on loopback.")
    ] = 0,
    renew: Annotated[bool, typer.Option("--renew", help="Sign a new certificate now.")] = False,
    standing: Annotated[
        bool | None,
        typer.Option(
            "--standing/--no-standing", help="Whether up keeps the standing service going."
        ),
    ] = None,
    control: Annotated[
        str, typer.Option(help="HOST:PORT of the control API; without one there is none.")
    ] = "",
    form: FormatOption = Format.table,
) -> None:
    """Make the server's folder: server.toml, a development authority, a certificate, secrets.

    Without --host only this machine reaches it. A second init completes a first, adds names and
    keeps the authority, so devices need nothing new.
    """
    from server.service.authority import expiry_of
    from server.service.folder import read_bytes
    from server.service.setup import Wanted, made

    place, now = folder_of(folder), _now()
    wanted = Wanted(tuple(host or ()), port, superlink_port, renew, standing, control)
    config = made(place, wanted, now)
    expiry = expiry_of(read_bytes(place.certificate))
    data = {
        "folder": str(place.path),
        "config": str(place.config),
        "address": config.address,
        "listens_on": f"{config.front.host}:{config.front.port}",
        "root_certificate": str(place.authority),
        "certificate_expires": expiry.isoformat(),
        "standing": config.service.standing,
        "control": config.control.listen,
    }

    def show(console: Console) -> None:
        for name, value in data.items():
            console.print(f"{name:<20} {value}", highlight=False, soft_wrap=True)
        console.print("Next: fleet server up", highlight=False)

    emit(data, form, show)


@app.command(
    epilog="Examples:\n\nfleet server up\n\nfleet server up --verbose\n\n"
    "fleet server up --format json"
)
def up(
    folder: FolderOption = DEFAULT_FOLDER,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show all that the processes print.")
    ] = False,
    form: FormatOption = Format.table,
) -> int:
    """Run SuperLink, SuperExec and front, and keep them running, until Ctrl-C or SIGTERM.

    So it does with the standing service and the control API, where server.toml wants them.

    Events go to standard output, one per line; all that the processes print is in log/ in the
    server's folder, and with --verbose on standard error.
    """
    from fleet.supervise.supervisor import Supervisor
    from fleet.supervise.ward import World
    from server.service.config import load_config
    from server.service.processes import PROGRAM, specs_of
    from server.service.setup import renewed

    place, tell = folder_of(folder), _teller(form)
    try:
        config = load_config(place)
        renewed(place, config, _now())
        specs = specs_of(place, config, os.environ)
        hear = _Ear(place, config, tell, verbose).hear
        world = World(time.monotonic, _now, random.SystemRandom().random)
        return Supervisor(specs, place.path, config.log_bytes, PROGRAM, world, tell, hear).run()
    except FleetError as error:
        if form is not Format.json:
            raise
        # One line like every event: a reader of lines need not know how the last one looks.
        _print(sys.stdout, json.dumps(json.loads(error_envelope(error))))
        return error.exit_code


@app.command(epilog="Examples:\n\nfleet server status\n\nfleet server status --format json")
def status(folder: FolderOption = DEFAULT_FOLDER, form: FormatOption = Format.table) -> None:
    """Show what runs, whether it answers, and until when its certificate is good."""
    from fleet.supervise.record import standing, standing_line
    from server.service.authority import expiry_of
    from server.service.config import load_config
    from server.service.folder import read_bytes
    from server.service.lives import standing_line_of, standing_of
    from server.service.processes import PROGRAM, is_healthy

    place = folder_of(folder)
    config = load_config(place)
    run = standing(place.path)
    running = run is not None and bool(run["running"])
    health = f"https://{config.superlink_address}/health"
    lives = standing_of(place) if config.service.standing else None
    expiry = expiry_of(read_bytes(config.certificate_path(place)))
    data = {
        "folder": str(place.path),
        "address": config.address,
        "running": running,
        "healthy": running and is_healthy(health, place.authority),
        "certificate_expires": expiry.isoformat(),
        "standing": lives,
        "control": config.control.listen,
        "run": run,
    }

    def show(console: Console) -> None:
        lines = {name: str(data[name]) for name in ("folder", "address")}
        lines["processes"] = standing_line(run, PROGRAM)
        lines["healthy"] = "yes" if data["healthy"] else "no"
        lines["certificate"] = f"until {expiry:%Y-%m-%d}"
        lines["service"] = standing_line_of(lives)
        lines["control"] = config.control.listen or "none"
        for name, value in lines.items():
            console.print(f"{name:<12} {value}", highlight=False, soft_wrap=True, markup=False)

    emit(data, form, show)


@app.command(epilog="Examples:\n\nfleet server doctor\n\nfleet server doctor --format json")
def doctor(folder: FolderOption = DEFAULT_FOLDER, form: FormatOption = Format.table) -> int:
    """Check versions, permissions, certificates, ports, exposure, disk and health; each with a fix.

    Exits with 1 when a check failed.
    """
    from server.service.doctor import examine

    findings = [each.record() for each in examine(folder_of(folder), _now())]
    worst = next((w for w in ("fail", "warn") if w in {f["result"] for f in findings}), "ok")

    def show(console: Console) -> None:
        for each in findings:
            line = f"{each['result']:<5} {each['check']:<13} {each['detail']}"
            console.print(line, highlight=False, soft_wrap=True, markup=False)
            if each["fix"]:
                console.print(f"      {each['fix']}", highlight=False, soft_wrap=True, markup=False)

    emit({"result": worst, "findings": findings}, form, show)
    return int(worst == "fail")


@app.command(
    "start-run",
    epilog="Examples:\n\nfleet server start-run\n\nfleet server start-run --config run.toml",
)
def start_run(
    config: Annotated[
        Path | None, typer.Option(help="TOML file in the keys of docs/run-config.md.")
    ] = None,
    folder: FolderOption = DEFAULT_FOLDER,
    form: FormatOption = Format.table,
) -> None:
    """Start a run of rounds with the devices that are online, and return at once.

    It is Flower's own `flwr run` with the installed app. Paths in the file are relative to it;
    results go to runs/fleet in the server's folder unless `out` names another.
    """
    from server.service.config import load_config
    from server.service.runs import placed_config, start_run

    place = folder_of(folder)
    load_config(place)
    wanted = placed_config(config, place)
    run_id = start_run(wanted, place)
    data = {"run": run_id, "out": wanted.out, "rounds": wanted.rounds}

    def show(console: Console) -> None:
        console.print(f"run {run_id} of {wanted.rounds} rounds writes to {wanted.out}", style=None)
        console.print(f"Next: fleet release list {wanted.out}", highlight=False, soft_wrap=True)

    emit(data, form, show)


def folder_of(path: Path) -> ServerFolder:
    """Return the server's folder with an absolute path."""
    return ServerFolder(path.expanduser().absolute())


class _Ear:
    """Listens to what the processes print, for the moment in which devices can come.

    Args:
        folder: Of the server.
        config: The server.
        tell: Told of that moment.
        verbose: Whether all is shown.
    """

    def __init__(
        self, folder: ServerFolder, config: ServerConfig, tell: Tell, verbose: bool
    ) -> None:
        self._folder, self._config, self._tell, self._verbose = folder, config, tell, verbose

    def hear(self, process: str, line: str) -> None:
        """Take a line."""
        from fleet.supervise.told import Told
        from server.service.front.events import READY
        from server.service.processes import FRONT, KEEPER

        if self._verbose:
            _print(sys.stderr, f"{process} | {line}")
        if process == KEEPER and (kept := _event_of(line)):
            self._tell(Told(kept.pop("event"), kept.pop("text"), KEEPER, kept))
        if process == FRONT and f'"event": "{READY}"' in line:
            address, root = self._config.address, self._folder.authority
            data: dict[str, Any] = {"address": address, "root_certificate": str(root)}
            self._tell(Told("server.ready", _welcome(self._config, self._folder), "", data))


def _event_of(line: str) -> dict[str, Any] | None:
    """Return an event of the keeper; ``None`` for another line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not {"event", "text", "at"} <= set(found):
        return None
    del found["at"]
    return found


def _welcome(config: ServerConfig, folder: ServerFolder) -> str:
    where = "" if folder.path == folder_of(DEFAULT_FOLDER).path else f" --folder {folder.path}"
    return (
        f"devices can come to {config.address}\n"
        "  on a device:  fleet-device init --name NAME"
        f" --server {config.address} --root-certificate {folder.authority}\n"
        f"  then here:    fleet device enroll NODE-KEY.PUB --name NAME{where}\n"
        f"  see them:     fleet device list{where}\n"
        f"  start rounds: {_rounds(config)}{where}\n"
        "  Ctrl-C ends the server."
    )


def _rounds(config: ServerConfig) -> str:
    if config.service.standing:
        return "fleet policy set base=DIGEST every_s=60"
    return "fleet server start-run"


def _now() -> datetime:
    return datetime.now().astimezone()


def _teller(form: Format) -> Callable[[Told], None]:
    def tell(told: Told) -> None:
        at = _now()
        line = told.line(at) if form is Format.table else json.dumps(told.record(at))
        _print(sys.stdout, line)

    return tell


def _print(stream: TextIO, line: str) -> None:
    # Whoever reads may go away; the server goes on.
    try:
        stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError):
        return
