"""The exporter as a process: ``python -m server.metrics --folder DIR --listen HOST:PORT``.

It says ``metrics.ready`` in one line of JSON, and ends by SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from pathlib import Path

from fleet.commands import error_envelope
from fleet.errors import FleetError, InputError
from server.control.reach import registry_place
from server.metrics.exporter import Exporter
from server.metrics.http import Door
from server.registry import open_registry
from server.service.folder import ServerFolder

__all__ = ["DEFAULT_LISTEN", "main"]

DEFAULT_LISTEN = "127.0.0.1:9464"
READY = "metrics.ready"


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to end; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.metrics")
    parser.add_argument("--folder", type=Path, required=True, help="The server's.")
    parser.add_argument("--listen", default=DEFAULT_LISTEN, help="HOST:PORT.")
    chosen = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        _serve(ServerFolder(chosen.folder.expanduser().absolute()), chosen.listen, ended)
    except FleetError as error:
        print(json.dumps(json.loads(error_envelope(error))), file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _serve(folder: ServerFolder, listen: str, ended: threading.Event) -> None:
    host, port = _address(listen)
    place = registry_place(folder)
    with (
        open_registry(place, clock=time.time) as registry,
        Door(host.strip("[]"), port, Exporter(registry, time.time)) as door,
    ):
        print(json.dumps({"event": READY, "address": f"{host}:{door.port}"}), flush=True)
        ended.wait()


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError("bad-address", f"--listen is HOST:PORT, not {listen!r}")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
