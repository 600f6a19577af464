"""The control API as a process of its own: ``python -m server.control --folder DIR --listen H:P``.

It says ``control.ready`` in one line of JSON, and ends by SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from fleet.commands import error_envelope
from fleet.errors import FleetError
from server.control.reach import opened_fleet
from server.control.service import serve
from server.service.authority import Pair
from server.service.config import load_config
from server.service.folder import ServerFolder, read_bytes

__all__ = ["DEFAULT_LISTEN", "main"]

DEFAULT_LISTEN = "127.0.0.1:9443"
READY = "control.ready"


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to end; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.control")
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
    config = load_config(folder)
    certificate = read_bytes(config.certificate_path(folder))
    own = Pair(certificate, read_bytes(config.key_path(folder)))
    fleet = opened_fleet(folder)
    with fleet.registry, serve(fleet, listen, own, read_bytes(folder.authority)) as server:
        host = listen.rpartition(":")[0]
        print(json.dumps({"event": READY, "address": f"{host}:{server.port}"}), flush=True)
        ended.wait()


if __name__ == "__main__":
    sys.exit(main())
