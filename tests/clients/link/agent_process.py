"""An agent in a process of its own, to be killed or stopped; with what the tests' agents share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np

from clients.link.records import About, Answer, Request
from clients.link.service import Server, serve
from fleet.federate.wire import Payload, Scalar

ROOT = Path(__file__).resolve().parents[3]
# No test waits longer for another thread or process.
PATIENCE_S = 30.0

Serve = Callable[[Callable[[Request], Answer]], Server]


def about() -> About:
    return About("device-1", os.getpid(), "0.1.0", "training for round 3")


def request_of(
    kind: str = "train", limit_s: float = PATIENCE_S, config: Mapping[str, Scalar] | None = None
) -> Request:
    return Request(kind, Payload(np.arange(5, dtype=np.float32), dict(config or {})), limit_s)


def echo(request: Request) -> Answer:
    return request.payload


@contextmanager
def started(socket: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Start an agent that answers by its ``kind``, and end it whatever state it is in."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.clients.link.agent_process", str(socket), kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            yield process
        finally:
            process.kill()  # also ends a process that is stopped


def _hang(request: Request) -> Answer:
    print("taken", flush=True)
    Event().wait(10 * PATIENCE_S)
    return request.payload


def _main(socket: Path, kind: str) -> None:
    with serve(socket, {"echo": echo, "hang": _hang}[kind], about):
        print("serving", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
