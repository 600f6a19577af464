"""``fleet server up``: run a server, and tell what happens, a line each."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from fleet.commands import error_envelope
from fleet.errors import FleetError
from server.control.cli.folder import FolderOption, folder_of, now
from server.control.cli.render import Format, FormatOption
from server.service.done import Done, done_in
from server.service.folder import DEFAULT_FOLDER, ServerFolder

if TYPE_CHECKING:
    from fleet.supervise.told import Tell, Told
    from server.service.config import ServerConfig

__all__ = ["UP_EXAMPLES", "up"]

UP_EXAMPLES = (
    "Examples:\n\nfleet server up\n\nfleet server up --verbose\n\nfleet server up --format json"
)


_BASE = "  its base:     fleet base install base.safetensors"


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
        renewed(place, config, now())
        specs = specs_of(place, config, os.environ)
        hear = _Ear(place, config, tell, verbose).hear
        world = World(time.monotonic, now, random.SystemRandom().random)
        return Supervisor(specs, place.path, config.log_bytes, PROGRAM, world, tell, hear).run()
    except FleetError as error:
        if form is not Format.json:
            raise
        # One line like every event: a reader of lines need not know how the last one looks.
        _print(sys.stdout, json.dumps(json.loads(error_envelope(error))))
        return error.exit_code


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
            data["release_key"] = str(self._folder.release_public)
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
    done = done_in(folder) if config.service.standing else Done()
    where = "" if folder.path == folder_of(DEFAULT_FOLDER).path else f" --folder {folder.path}"
    # A folder of a server before there were signatures has no such file until the next init.
    public = folder.release_public
    pinned = f" --release-key {public}" if public.is_file() else ""
    joining = (
        "  on a device:  fleet-device init --name NAME"
        f" --server {config.address} --root-certificate {folder.authority}{pinned}",
        f"  then here:    fleet device enroll NODE-KEY.PUB --name NAME{where}",
    )
    lines = [
        f"devices can come to {config.address}",
        *(() if done.device else joining),
        f"  see them:     fleet device list{where}",
        *_rounds(config, where, done),
        "  Ctrl-C ends the server.",
    ]
    return "\n".join(lines)


def _rounds(config: ServerConfig, where: str, done: Done) -> list[str]:
    if not config.service.standing:
        return [f"  start rounds: fleet server start-run{where}"]
    if done.policy:
        return [f"  a round:      fleet round start{where}"] if done.on_order else []
    policy = f"  start rounds: fleet policy set base=DIGEST every_s=60{where}"
    return [policy] if done.base else [_BASE + where, policy]


def _teller(form: Format) -> Callable[[Told], None]:
    def tell(told: Told) -> None:
        at = now()
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
