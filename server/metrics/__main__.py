"""The exporter as a process: ``python -m server.metrics --folder DIR --listen HOST:PORT``.

It says ``metrics.ready`` in one line of JSON, and ends by SIGTERM or SIGINT.
"""

from __future__ import annotations

import sys
import threading
import time

from fleet.errors import InputError
from server.control.reach import registry_place
from server.metrics.exporter import Exporter
from server.metrics.http import Door
from server.registry import open_registry
from server.service.folder import ServerFolder
from server.service.listening import say_ready, serve_until_told

__all__ = ["DEFAULT_LISTEN", "main"]

DEFAULT_LISTEN = "127.0.0.1:9464"
READY = "metrics.ready"


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to end; return the exit code."""
    return serve_until_told("server.metrics", DEFAULT_LISTEN, _serve, arguments)


def _serve(folder: ServerFolder, listen: str, ended: threading.Event) -> None:
    host, port = _address(listen)
    place = registry_place(folder)
    with (
        open_registry(place, clock=time.time) as registry,
        Door(host.strip("[]"), port, Exporter(registry, time.time)) as door,
    ):
        say_ready(READY, host, door.port)
        ended.wait()


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError("bad-address", f"--listen is HOST:PORT, not {listen!r}")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
