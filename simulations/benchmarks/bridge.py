"""What the bridge adds to a fresh process of Flower's, and one message over the link.

Flower starts a Python process for every message of a device, so what the bridge imports is paid
each time. Whole processes are timed beside each other: Flower's client app alone; with the bridge
and its link imported; and with one message answered, which includes the first connection. The agent
that answers is a process of its own and echoes. Seconds of the CPU are counted too, because they
hardly change when the machine is busy with something else.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from clients.link.caller import ask
from clients.link.messages import encode_request
from clients.link.records import About, Declined, Request
from clients.link.service import serve
from clients.link.transport import ANSWER, CHANNEL_OPTIONS, address_of
from fleet.errors import RoundError
from fleet.federate.wire import Payload
from simulations.bench import Measurement, measure, report

__all__ = ["BAR_S", "run"]

# Most that the bridge may add to Flower's own start.
BAR_S = 0.3
REPEATS = 100
LIMIT_S = 60.0
FLOWER = "import flwr.clientapp"
BRIDGE = f"{FLOWER}; import clients.bridge, clients.link.caller"


def run(entries: int, runs: int) -> dict[str, Any]:
    """Time ``runs`` fresh processes of each side, and messages of ``entries`` float32."""
    with tempfile.TemporaryDirectory(prefix="link-") as folder:
        socket = Path(folder) / "agent.sock"
        codes = {
            "flower": FLOWER,
            "flower-and-bridge": BRIDGE,
            "and-one-answer": _answer_code(socket, entries),
        }
        cpu: dict[str, list[float]] = {name: [] for name in codes}
        with _agent(socket):
            started = measure({name: _fresh(codes[name], cpu[name]) for name in codes}, runs)
            trips = measure(_trips(socket, entries), runs)
    record = report(started, "flower", {"bytes of array each": entries * 4})
    # The first process of each side warmed up.
    record["cpu_seconds"] = {name: statistics.median(found[1:]) for name, found in cpu.items()}
    record["round_trip_seconds"] = {name: trip.median / REPEATS for name, trip in trips.items()}
    walls = {name: side.median for name, side in started.items()}
    record["notes"] = [
        f"{name}: adds {walls[name] - walls['flower']:.3f} s,"
        f" {record['cpu_seconds'][name] - record['cpu_seconds']['flower']:.3f} s of the CPU;"
        f" the bar is {BAR_S} s"
        for name in ("flower-and-bridge", "and-one-answer")
    ]
    record["notes"] += [_note(name, trip) for name, trip in trips.items()]
    return record


def _note(name: str, trip: Measurement) -> str:
    each = [value / REPEATS * 1e6 for value in (trip.median, trip.lowest, trip.highest)]
    return f"{name}: {each[0]:,.0f} µs a round trip ({each[1]:,.0f} to {each[2]:,.0f})"


def _trips(socket: Path, entries: int) -> dict[str, Callable[[], None]]:
    request = _request(entries)
    data = encode_request(request)

    def connected() -> None:
        with grpc.insecure_channel(address_of(socket), options=CHANNEL_OPTIONS) as channel:
            call = channel.unary_unary(ANSWER)
            for _ in range(REPEATS):
                call(data, timeout=LIMIT_S)

    def asked() -> None:
        for _ in range(REPEATS):
            if isinstance(answer := ask(socket, request), Declined):
                raise RoundError("bench-declined", f"the agent declined: {answer.detail}")

    return {"raw bytes, one connection": connected, "ask, a connection each": asked}


def _request(entries: int) -> Request:
    return Request("train", Payload(np.ones(entries, np.float32), {"format": 1}), LIMIT_S)


def _answer_code(socket: Path, entries: int) -> str:
    return f"""{BRIDGE}
import numpy
from pathlib import Path
from clients.link.records import Request
from fleet.federate.wire import Payload
payload = Payload(numpy.ones({entries}, numpy.float32), {{"format": 1}})
request = Request("train", payload, {LIMIT_S})
assert clients.link.caller.ask(Path({str(socket)!r}), request).array.size == {entries}
"""


def _fresh(code: str, cpu: list[float]) -> Callable[[], None]:
    """Return a side that runs ``code`` in a process of its own and adds to ``cpu`` its seconds."""

    def side() -> None:
        before = _children_cpu()
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RoundError("bench-failed", f"a fresh process failed: {last}")
        cpu.append(_children_cpu() - before)

    return side


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _agent(socket: Path) -> Iterator[None]:
    command = [sys.executable, "-m", __name__, str(socket)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        if agent.stdout.readline() != "serving\n":
            raise RoundError("bench-failed", "the agent's process did not start")
        try:
            yield
        finally:
            agent.kill()


def _main(socket: Path) -> None:
    with serve(socket, lambda request: request.payload, lambda: About("bench", 0, "", "")):
        print("serving", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
