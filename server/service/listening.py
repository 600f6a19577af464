"""What the server's own processes share: told a folder and an address, ended by a signal."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from fleet.commands import error_envelope
from fleet.errors import FleetError
from server.service.folder import ServerFolder

__all__ = ["Serve", "say_ready", "serve_until_told"]

Serve = Callable[[ServerFolder, str, threading.Event], None]
"""Called with the server's folder, HOST:PORT, and what is set when it has to end."""


def serve_until_told(module: str, default: str, serve: Serve, arguments: list[str] | None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Args:
        module: Name for ``python -m``.
        default: HOST:PORT to listen on when none is named.
        serve: Serves until its event is set; an error of ours becomes one line on standard error.
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--folder", type=Path, required=True, help="The server's.")
    parser.add_argument("--listen", default=default, help="HOST:PORT.")
    chosen = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        serve(ServerFolder(chosen.folder.expanduser().absolute()), chosen.listen, ended)
    except FleetError as error:
        print(json.dumps(json.loads(error_envelope(error))), file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def say_ready(event: str, host: str, port: int) -> None:
    """Print the event by which whoever started the process knows that it answers, and where."""
    print(json.dumps({"event": event, "address": f"{host}:{port}"}), flush=True)
