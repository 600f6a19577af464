"""The doctor of a server: is it able to serve, and if not, what is the next step?"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fleet.errors import FleetError
from fleet.supervise.record import standing
from server.service.authority import LOOPBACK, RENEW_DAYS, expiry_of, names_of
from server.service.config import ServerConfig, load_config
from server.service.folder import ServerFolder, read_bytes
from server.service.processes import is_healthy

__all__ = ["CHECKS", "Finding", "examine"]

# Flower changes its wire within minor versions, so one of them is what we know.
FLOWER = "1.41."
ASK_S = 5.0
LEAST_FREE_BYTES = 2**30
PRIVATE = 0o077
INSTALL = "Install one: fleet base install FILE"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        check: Stable name.
        result: ``ok``, ``warn`` or ``fail``.
        detail: What was seen, in one sentence.
        fix: The next step; ``""`` when nothing is wrong.
    """

    check: str
    result: str
    detail: str
    fix: str = ""

    def record(self) -> dict[str, str]:
        """Return the finding as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class _Subject:
    folder: ServerFolder
    config: ServerConfig
    now: datetime

    @property
    def is_running(self) -> bool:
        found: dict[str, Any] | None = standing(self.folder.path)
        return found is not None and bool(found["running"])


def examine(folder: ServerFolder, now: datetime) -> list[Finding]:
    """Run all checks; never raises.

    Args:
        folder: Of the server, absolute.
        now: The time, with its zone.
    """
    try:
        subject = _Subject(folder, load_config(folder), now)
    except FleetError as error:
        return [Finding("config", "fail", error.message, error.hint)]
    findings = [Finding("config", "ok", str(folder.config))]
    for name, check in CHECKS.items():
        try:
            findings += check(subject)
        except FleetError as error:
            findings.append(Finding(name, "fail", error.message, error.hint))
        except Exception as error:
            findings.append(Finding(name, "warn", f"the check itself failed: {error!r}"))
    return findings


def _versions(subject: _Subject) -> Iterator[Finding]:
    try:
        flower = version("flwr")
    except PackageNotFoundError:
        yield Finding("versions", "fail", "Flower is missing", "pip install 'corefleet[server]'")
        return
    text = f"corefleet {version('corefleet')}, flwr {flower}, Python {platform.python_version()}"
    if flower.startswith(FLOWER):
        yield Finding("versions", "ok", text)
    else:
        fix = f"pip install 'flwr=={FLOWER}*'; devices need the same minor version"
        yield Finding("versions", "fail", f"{text}: {FLOWER}* is known to work", fix)


def _permissions(subject: _Subject) -> Iterator[Finding]:
    folder = subject.folder
    private = [folder.path, *folder.secrets]
    if subject.config.front.key:
        private.append(subject.config.key_path(folder))
    for path in private:
        if not path.exists():
            yield Finding("permissions", "fail", f"{path} is missing", "Make it: fleet server init")
            continue
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if mode & PRIVATE:
            fix = f"chmod go= {path}"
            yield Finding("permissions", "fail", f"others may open {path} ({mode:04o})", fix)
        elif found.st_uid != os.getuid():
            yield Finding("permissions", "warn", f"{path} belongs to another user", "chown it")
        else:
            yield Finding("permissions", "ok", f"{path.name} is for its owner alone")


def _certificates(subject: _Subject) -> Iterator[Finding]:
    config, folder = subject.config, subject.folder
    is_own = bool(config.front.certificate)
    for path in dict.fromkeys(
        [folder.authority, folder.certificate, config.certificate_path(folder)]
    ):
        content = read_bytes(path)
        left = (expiry_of(content) - subject.now).days
        detail = f"{path.name} expires in {left} days"
        fix = "Renew it: fleet server init --renew; then restart fleet server up."
        if path == folder.authority:
            fix = (
                "Remove ca.crt and ca.key, run fleet server init, and give devices the new ca.crt."
            )
        elif is_own and path == config.certificate_path(folder):
            fix = "Renew it with whoever signed it; the front takes the new one within an hour."
        if left < 0:
            yield Finding("certificates", "fail", f"{path.name} expired {-left} days ago", fix)
        elif left < RENEW_DAYS:
            yield Finding("certificates", "warn", detail, fix)
        else:
            yield Finding("certificates", "ok", detail)
    wanted = set(config.front.names) or set(LOOPBACK)
    lacking = wanted - set(names_of(read_bytes(config.certificate_path(folder))))
    if lacking:
        text = f"the front's certificate is not for {', '.join(sorted(lacking))}"
        yield Finding("certificates", "fail", text, "fleet server init --renew, or sign another.")


def _ports(subject: _Subject) -> Iterator[Finding]:
    if subject.is_running:
        return
    config = subject.config
    for what, host, port in (
        ("front", config.front.host, config.front.port),
        ("superlink", "127.0.0.1", config.superlink.port),
    ):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()
            yield Finding("ports", "ok", f"{what}: {host}:{port} is free")
        except OSError as error:
            fix = f"Stop what listens there, or choose another under {what} in server.toml."
            yield Finding("ports", "fail", f"{what}: {host}:{port}: {error.strerror}", fix)


def _processes(subject: _Subject) -> Iterator[Finding]:
    config, folder = subject.config, subject.folder
    if not subject.is_running:
        yield Finding("health", "warn", "the server does not run", "Start it: fleet server up")
        return
    health = f"https://{config.superlink_address}/health"
    if is_healthy(health, folder.authority, ASK_S):
        yield Finding("health", "ok", "the SuperLink answers")
    else:
        yield Finding("health", "fail", "the SuperLink does not answer", "See log/superlink.log")
    if config.front.certificate:  # whom devices trust then is not ours to know
        return
    front = f"https://127.0.0.1:{config.front.port}/health"
    if is_healthy(front, folder.authority, ASK_S):
        yield Finding("health", "ok", "the front answers")
    elif config.front.host in ("127.0.0.1", "0.0.0.0"):
        yield Finding("health", "fail", "the front does not answer", "See log/front.log")


def _disk(subject: _Subject) -> Iterator[Finding]:
    free = shutil.disk_usage(subject.folder.path).free
    text = f"{free / 2**30:.1f} GiB free"
    if free >= LEAST_FREE_BYTES:
        yield Finding("disk", "ok", text)
    else:
        yield Finding("disk", "warn", f"{text}, 1 GiB is wanted", "Free some space.")


def _exposure(subject: _Subject) -> Iterator[Finding]:
    """Look whether anything but loopback listens on the SuperLink's port."""
    table = Path("/proc/net/tcp")
    if sys.platform != "linux" or not table.exists():
        return
    port = f"{subject.config.superlink.port:04X}"
    wide = [
        local
        for path in (table, Path("/proc/net/tcp6"))
        if path.exists()
        for local in _listeners(path)
        if local.endswith(f":{port}") and not local.startswith("0100007F:")
    ]
    if wide:
        text = f"port {subject.config.superlink.port} listens beyond loopback: anybody can run code"
        yield Finding("exposure", "fail", text, "Stop it; the SuperLink belongs on 127.0.0.1.")
    else:
        yield Finding("exposure", "ok", "the SuperLink's port is closed to the outside")


def _listeners(path: Path) -> Iterator[str]:
    listening = "0A"
    for line in path.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == listening:
            yield fields[1]


def _base(subject: _Subject) -> Iterator[Finding]:
    """Look whether the policy of a standing service names a base that is there."""
    from server.control.reach import registry_place
    from server.installed import base_in
    from server.registry import open_registry
    from server.standing.line import line_of, trained_base

    place = registry_place(subject.folder)
    if not subject.config.service.standing:
        yield Finding("base", "ok", "no standing service, so no base is to be installed")
        return
    if isinstance(place, Path) and not place.exists():
        yield Finding("base", "warn", "no base is installed", INSTALL)
        return
    with open_registry(place, clock=time.time) as registry:
        held, bases = registry.policy.newest(), registry.bases.all()
        current = registry.releases.current()
        installed = {row.digest for row in bases}
        if held is None:
            fix = "Set one: fleet policy set base=DIGEST; digests: fleet base list"
            text = f"{len(bases)} base(s), and no policy names one"
            if not bases:
                fix, text = INSTALL, "no base is installed"
            yield Finding("base", "warn", text, fix)
        elif held.policy.base not in installed:
            text = f"the policy's base {held.policy.base} is not installed: no round can open"
            yield Finding("base", "fail", text, "Install it: fleet base install FILE")
        elif current is not None and held.policy.base not in line_of(registry, current):
            text = f"the policy's base {held.policy.base[:12]}… is none that the fleet came over"
            fix = f"Move the fleet to it: fleet release rebase {held.policy.base}"
            yield Finding("base", "fail", f"{text}: no round can open", fix)
        else:
            trained = trained_base(registry, held.policy)
            base_in(registry.bases.content(trained))
            what = "the policy's base" if trained == held.policy.base else "the fleet's base"
            yield Finding("base", "ok", f"{what} {trained[:12]}… is installed")


CHECKS: dict[str, Callable[[_Subject], Iterator[Finding]]] = {
    "versions": _versions,
    "permissions": _permissions,
    "certificates": _certificates,
    "ports": _ports,
    "exposure": _exposure,
    "disk": _disk,
    "health": _processes,
    "base": _base,
}
