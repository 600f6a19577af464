"""``fleet server``: make a server, run it, look after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.control.cli.backups import BACKUP_EXAMPLES, RESTORE_EXAMPLES, backup, restore
from server.control.cli.folder import FolderOption, folder_of, now
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.serving import UP_EXAMPLES, up
from server.service.folder import DEFAULT_FOLDER

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

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

    place, at = folder_of(folder), now()
    wanted = Wanted(tuple(host or ()), port, superlink_port, renew, standing, control)
    config = made(place, wanted, at)
    expiry = expiry_of(read_bytes(place.certificate))
    data = {
        "folder": str(place.path),
        "config": str(place.config),
        "address": config.address,
        "listens_on": f"{config.front.host}:{config.front.port}",
        "root_certificate": str(place.authority),
        "release_key": str(place.release_public),
        "certificate_expires": expiry.isoformat(),
        "standing": config.service.standing,
        "control": config.control.listen,
    }

    def show(console: Console) -> None:
        for name, value in data.items():
            console.print(f"{name:<20} {value}", highlight=False, soft_wrap=True)
        console.print("Next: fleet server up", highlight=False)

    emit(data, form, show)


app.command(epilog=UP_EXAMPLES)(up)
app.command(epilog=BACKUP_EXAMPLES)(backup)
app.command(epilog=RESTORE_EXAMPLES)(restore)


@app.command(epilog="Examples:\n\nfleet server status\n\nfleet server status --format json")
def status(folder: FolderOption = DEFAULT_FOLDER, form: FormatOption = Format.table) -> None:
    """Show what runs, whether it answers, and until when its certificate is good."""
    from fleet.supervise.record import standing, standing_line
    from server.control.verbs.life import UP
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
    stopped = lives["next"] == UP if lives else not running
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
        "next": UP if stopped else "",
    }

    def show(console: Console) -> None:
        lines = {name: str(data[name]) for name in ("folder", "address")}
        lines["processes"] = standing_line(run, PROGRAM)
        lines["healthy"] = "yes" if data["healthy"] else "no"
        lines["certificate"] = f"until {expiry:%Y-%m-%d}"
        lines["service"] = standing_line_of(lives)
        lines["control"] = config.control.listen or "none"
        if stopped:
            lines["next"] = UP
        for name, value in lines.items():
            console.print(f"{name:<12} {value}", highlight=False, soft_wrap=True, markup=False)

    emit(data, form, show)


@app.command(epilog="Examples:\n\nfleet server doctor\n\nfleet server doctor --format json")
def doctor(folder: FolderOption = DEFAULT_FOLDER, form: FormatOption = Format.table) -> int:
    """Check versions, permissions, certificates, ports, exposure, disk and health; each with a fix.

    Exits with 1 when a check failed.
    """
    from server.service.doctor import examine

    findings = [each.record() for each in examine(folder_of(folder), now())]
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
