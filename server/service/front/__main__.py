"""``python -m server.service.front --folder DIR``: the front as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import socket
import ssl
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from fleet.errors import FleetError, InputError
from server.service.config import ServerConfig, load_config
from server.service.folder import ServerFolder
from server.service.front.connection import Shared
from server.service.front.events import READY, Events
from server.service.front.listen import Listener, bound, tls_of
from server.service.front.rates import Rates
from server.service.front.upstream import Upstream

# Files, logs and what Python itself holds open.
OTHER_DESCRIPTORS = 64


def main(arguments: list[str]) -> int:
    """Run the front until SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(prog="server.service.front", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    folder = ServerFolder(parser.parse_args(arguments).folder.absolute())
    try:
        asyncio.run(_serve(folder, load_config(folder)))
    except FleetError as error:
        told = {"event": "front.failed", "code": error.code, "detail": error.message}
        print(json.dumps({**told, "hint": error.hint}), flush=True)
        return error.exit_code
    return 0


async def _serve(folder: ServerFolder, config: ServerConfig) -> None:
    events = Events(sys.stdout, time.monotonic, lambda: datetime.now(timezone.utc))
    context = _tls(folder, config)
    listener = _bound(config)
    limits = config.limits
    _raise_descriptors(limits.connections + limits.upstream_connections + OTHER_DESCRIPTORS)
    rates = Rates(limits.requests_per_s, limits.burst, time.monotonic)
    volumes = Rates(limits.volume_bytes / 60, limits.volume_bytes, time.monotonic)
    upstream = Upstream(f"https://{config.superlink_address}", folder.authority, limits)
    running = asyncio.ensure_future(
        Listener(Shared(limits, rates, volumes, upstream, events), context, listener).run()
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    events.tell(READY, host=config.front.host, port=config.front.port, address=config.address)
    with suppress(asyncio.CancelledError):
        await running
    await upstream.aclose()


def _tls(folder: ServerFolder, config: ServerConfig) -> ssl.SSLContext:
    certificate, key = config.certificate_path(folder), config.key_path(folder)
    try:
        return tls_of(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            "certificate-unfit",
            f"{certificate} and {key} make no TLS server: {error}",
            "See: fleet server doctor",
        ) from error


def _bound(config: ServerConfig) -> socket.socket:
    front = config.front
    try:
        return bound(front.host, front.port)
    except OSError as error:
        raise InputError(
            "port-taken",
            f"nobody can listen on {front.host}:{front.port} ({error.strerror or error})",
            "Stop what listens there, or choose another port under front in server.toml.",
        ) from error


def _raise_descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
