"""The control API as a process of its own: ``python -m server.control --folder DIR --listen H:P``.

It says ``control.ready`` in one line of JSON, and ends by SIGTERM or SIGINT.
"""

from __future__ import annotations

import sys
import threading

from server.control.reach import opened_fleet
from server.control.service import serve
from server.service.authority import Pair
from server.service.config import load_config
from server.service.folder import ServerFolder, read_bytes
from server.service.listening import say_ready, serve_until_told

__all__ = ["DEFAULT_LISTEN", "main"]

DEFAULT_LISTEN = "127.0.0.1:9443"
READY = "control.ready"


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to end; return the exit code."""
    return serve_until_told("server.control", DEFAULT_LISTEN, _serve, arguments)


def _serve(folder: ServerFolder, listen: str, ended: threading.Event) -> None:
    config = load_config(folder)
    certificate = read_bytes(config.certificate_path(folder))
    own = Pair(certificate, read_bytes(config.key_path(folder)))
    fleet = opened_fleet(folder)
    with fleet.registry, serve(fleet, listen, own, read_bytes(folder.authority)) as server:
        host = listen.rpartition(":")[0]
        say_ready(READY, host, server.port)
        ended.wait()


if __name__ == "__main__":
    sys.exit(main())
