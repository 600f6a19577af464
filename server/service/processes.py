"""Which processes a server is made of, and when each may start."""

from __future__ import annotations

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fleet.errors import FleetError, InputError, UnavailableError
from fleet.supervise.child import Exit
from fleet.supervise.record import Program
from fleet.supervise.restarts import Backoff
from fleet.supervise.ward import FLOWER_CODE, Sight, Spec, World
from server.flower import QUIET_ENVIRONMENT
from server.flower_control import UnreachableError
from server.service.config import ServerConfig
from server.service.folder import ServerFolder
from server.service.setup import renewed

__all__ = [
    "CONTROL",
    "FRONT",
    "KEEPER",
    "METRICS",
    "PROGRAM",
    "SUPEREXEC",
    "SUPERLINK",
    "CertificateWear",
    "HealthGate",
    "is_healthy",
    "specs_of",
]

SUPERLINK, SUPEREXEC, FRONT = "superlink", "superexec", "front"
KEEPER, CONTROL, METRICS = "keeper", "control", "metrics"
OURS = (FRONT, KEEPER, CONTROL, METRICS)
PROGRAM = Program("fleet server up", "fleet server status", "--folder")
# A device is patient, an operator is not: the longest delay is short.
BACKOFF = Backoff(least_s=0.5, first_s=2.0, longest_s=30.0, steady_s=60.0)
STOP_S = {SUPERLINK: 20.0, SUPEREXEC: 15.0, FRONT: 5.0, KEEPER: 5.0, CONTROL: 10.0, METRICS: 5.0}
# A SuperLink needs seconds to start, on a busy machine many; then it never will.
START_LIMIT_S = 120.0
LOOK_EVERY_S = 0.25
# The supervisor does nothing else while it asks.
ASK_S = 1.0
CERTIFICATE_EVERY_S = 3600.0
LOOPBACK = "127.0.0.1,localhost"
TAKEN = "address already in use"
# Flower's exit codes after which a restart cannot help: arguments, schema, secrets, TLS, versions.
FOR_GOOD = frozenset({104, 105, 400, 401, 402, 600, 602, 603, 604, 605, 606})


class HealthGate:
    """Holds a process back until the SuperLink answers.

    Args:
        url: Its health.
        authority: Certificate (PEM) of whoever signed its own.
        limit_s: Longest wait, seconds; after it the whole service ends.
    """

    def __init__(self, url: str, authority: Path, limit_s: float = START_LIMIT_S) -> None:
        self._url, self._authority, self._limit_s = url, authority, limit_s
        self._until_s: float | None = None

    def look(self, world: World) -> Sight:
        """Ask once."""
        now_s = world.clock()
        until_s = self._until_s = now_s + self._limit_s if self._until_s is None else self._until_s
        if is_healthy(self._url, self._authority):
            return Sight(True)
        if now_s < until_s:
            return Sight(False, next_s=LOOK_EVERY_S)
        failure = UnreachableError(
            "superlink-silent",
            f"the SuperLink did not answer within {self._limit_s:g} s",
            "See log/superlink.log in the server's folder, and: fleet server doctor",
        )
        return Sight(False, failure=failure)


class CertificateWear:
    """Has a process started afresh once the certificate that it serves is another.

    Args:
        paths: Certificate and key.
        renew: Renews them if they are due, given the time.
    """

    def __init__(self, paths: Sequence[Path], renew: partial[bool]) -> None:
        self._paths, self._renew = paths, renew
        self._seen = self._times()
        self._look_s: float | None = None

    def observe(self, world: World, is_up: bool) -> str:
        """Return why the process is recycled now; ``""``: it is not."""
        now_s = world.clock()
        if self._look_s is not None and now_s < self._look_s:
            return ""
        is_first, self._look_s = self._look_s is None, now_s + CERTIFICATE_EVERY_S
        if is_first:
            return ""
        try:
            self._renew(world.now())
        except FleetError:  # the doctor tells; what runs goes on
            return ""
        times = self._times()
        is_new, self._seen = times != self._seen, times
        return "its certificate is new" if is_new and is_up else ""

    def _times(self) -> list[int]:
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in self._paths]


def specs_of(
    folder: ServerFolder, config: ServerConfig, environment: Mapping[str, str]
) -> list[Spec]:
    """Return the processes in the order of their start: SuperLink, SuperExec, front.

    After them the keeper of the standing service, the control API and the metrics, where they are
    wanted.

    Args:
        folder: Of the server, absolute.
        config: The server.
        environment: That of this process.

    Raises:
        UnavailableError: ``program-missing``.
    """
    renew = partial(renewed, folder, config)
    own = (folder.certificate, folder.key)
    served = (config.certificate_path(folder), config.key_path(folder))
    health = f"https://{config.superlink_address}/health"
    gate = partial(HealthGate, health, folder.authority)
    surroundings = _environment(folder, environment)
    commands = _commands(folder, config)
    wears = {
        SUPERLINK: partial(CertificateWear, own, renew),
        FRONT: partial(CertificateWear, served, renew),
        CONTROL: partial(CertificateWear, served, renew),
    }
    return [
        Spec(
            name=name,
            command=command,
            environment=surroundings,
            backoff=BACKOFF,
            stop_s=STOP_S[name],
            wear=wears.get(name),
            # Metrics are there to tell of a SuperLink that is not.
            gate=None if name in (SUPERLINK, METRICS) else gate,
            final=partial(_final, name),
            recycled_on_hangup=name == FRONT,
        )
        for name, command in commands.items()
    ]


def is_healthy(url: str, authority: Path, timeout_s: float = ASK_S) -> bool:
    """Tell whether ``url`` answers with 200.

    Args:
        url: Of a health.
        authority: Certificate (PEM) to trust.
        timeout_s: Longest wait for the answer.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
        # No proxy of the environment may come between.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _commands(folder: ServerFolder, config: ServerConfig) -> dict[str, list[str]]:
    root = str(folder.authority)
    secret = ["--superexec-auth-secret-file", str(folder.superexec_secret)]
    place = ["--folder", str(folder.path)]
    own = {}
    if config.service.standing:
        own[KEEPER] = [sys.executable, "-m", "server.service.keeper", *place]
    if config.control.listen:
        listen = ["--listen", config.control.listen]
        own[CONTROL] = [sys.executable, "-m", "server.control", *place, *listen]
    if config.metrics.listen:
        listen = ["--listen", config.metrics.listen]
        own[METRICS] = [sys.executable, "-m", "server.metrics", *place, *listen]
    return {
        SUPERLINK: [
            _program("flower-superlink"),
            *("--ssl-ca-certfile", root),
            *("--ssl-certfile", str(folder.certificate), "--ssl-keyfile", str(folder.key)),
            *("--host", "127.0.0.1", "--port", str(config.superlink.port)),
            *("--database", str(folder.database)),
            *("--enable-supernode-auth", "--isolation", "process", *secret),
        ],
        SUPEREXEC: [
            _program("flower-superexec"),
            *("--runtime-api-address", config.superlink_address),
            *("--root-certificates", root, *secret),
        ],
        FRONT: [sys.executable, "-m", "server.service.front", *place],
        **own,
    }


def _program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not os.access(path, os.X_OK):
        raise UnavailableError(
            "program-missing", f"there is no program {path}", "pip install 'corefleet[server]'"
        )
    return str(path)


def _environment(folder: ServerFolder, ours: Mapping[str, str]) -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    beside = [ours.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    return {
        **ours,
        **QUIET_ENVIRONMENT,
        "FLWR_HOME": str(folder.flower_home),
        # Flower starts its children by their bare names.
        "PATH": os.pathsep.join([programs, ours.get("PATH", os.defpath)]),
        # Loopback is never reached by a proxy.
        "NO_PROXY": ",".join(filter(None, [LOOPBACK, *beside])),
        "PYTHONUNBUFFERED": "1",
    }


def _final(name: str, end: Exit, lines: list[str]) -> FleetError | None:
    """Return the error after which ``name`` is not started again; see ``Spec.final``."""
    if name in OURS and end.status == InputError.exit_code:
        told = next(filter(None, map(_failure_of, lines)), None)
        if told is not None:
            return InputError(str(told["code"]), str(told["detail"]), str(told["hint"]))
    if name != SUPERLINK:
        return None
    if any(TAKEN in line for line in lines):
        return InputError(
            "port-taken",
            "the SuperLink's port on 127.0.0.1 is taken",
            "Stop what listens there, or choose another: fleet server init --superlink-port PORT",
        )
    codes = [int(found[1]) for found in map(FLOWER_CODE.search, lines) if found]
    if codes and codes[0] in FOR_GOOD:
        return InputError(
            "superlink-refused",
            f"the SuperLink ended with Flower's exit code {codes[0]}",
            "See log/superlink.log in the server's folder, and: fleet server doctor",
        )
    return None


def _failure_of(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    is_one = isinstance(found, dict) and {"code", "detail", "hint"} <= set(found)
    if isinstance(found, dict) and {"error_code", "message"} <= set(found):  # an envelope
        hint = found.get("hint", "")
        return {"code": found["error_code"], "detail": found["message"], "hint": hint}
    return found if is_one else None
