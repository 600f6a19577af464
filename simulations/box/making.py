"""Makes a fleet in a box: the server's folder, a base, devices with samples and labels.

Devices are made by their own commands, as ``fleet-device`` runs them; only that they run in this
process, which has loaded PyTorch once.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from clients.agent.cli.root import run as fleet_device
from clients.agent.config import Intake, load_config, save_config
from fleet.adapt.base import Base, load_base, save_base
from fleet.errors import FleetError, InputError, MismatchError, RoundError
from fleet.files import write_text
from fleet.har.population import population_of
from fleet.har.virtual import VirtualFleet, virtual_fleet
from server.prepare import check_feasible, obtain_base
from server.service.config import ServerConfig
from server.service.config import load_config as load_server
from server.service.setup import Wanted as WantedServer
from server.service.setup import made as made_server
from simulations.box.wanted import Box, Wanted
from simulations.progress import Progress
from simulations.recordings import write_recordings

__all__ = ["free_ports", "make_box"]

LOOPBACK = "127.0.0.1"
KINDS = {4: InputError, 1: RoundError}


def make_box(wanted: Wanted, box: Box, progress: Progress, now: datetime) -> tuple[str, ...]:
    """Make what is missing of a box.

    Args:
        wanted: What it is.
        box: Where.
        progress: Told of every step.
        now: The time, with its zone.

    Returns:
        The devices' names.

    Raises:
        MismatchError: ``other-box`` when another one is in the folder.
        FleetError: What a part of it raises.
    """
    known = next((each for each in (box.made, box.begun) if each.exists()), None)
    if known is not None and json.loads(known.read_text("utf-8")) != wanted.made_of:
        raise MismatchError(
            "other-box",
            f"{box.path} holds a fleet of other devices, data, base or seed",
            "Give what it was made with, or another --folder.",
        )
    config = wanted.config()
    population = population_of(config)
    check_feasible(config, population)
    fleet = virtual_fleet(config, population)
    names = tuple(fleet.name(number) for number in range(len(fleet)))
    if box.made.exists():
        _server(box, wanted.control, now)
        return names
    box.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # First, so that what is cut off half-way is completed as the fleet that it was to be.
    write_text(box.begun, json.dumps(wanted.made_of) + "\n")
    server = _server(box, wanted.control, now)
    if not box.base.exists():
        progress.stage("base", wanted.base_epochs if not wanted.base else 1)
        made = obtain_base(config, population, lambda e, loss: progress.advance(f"loss {loss:.3f}"))
        save_base(made, box.base)
    base = load_base(box.base)
    progress.stage("devices", len(names))
    for number, (name, port) in enumerate(zip(names, free_ports(len(names)), strict=True)):
        windows = _device(fleet, number, base, box, (server, port))
        progress.advance(f"{name}: {windows} windows")
    write_text(box.made, json.dumps(wanted.made_of) + "\n")
    box.begun.unlink()
    return names


def free_ports(count: int) -> list[int]:
    """Return different ports on loopback that nobody listens on now."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((LOOPBACK, 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


def _server(box: Box, control: str, now: datetime) -> ServerConfig:
    """Make a server, or have the one that is there listen for operators at ``control``."""
    if not box.server.config.exists():
        port, superlink, free = free_ports(3)
        control = control or f"{LOOPBACK}:{free}"
        wanted = WantedServer(port=port, superlink_port=superlink, standing=True, control=control)
    elif not control:
        return load_server(box.server)
    else:
        wanted = WantedServer(control=control)
    return made_server(box.server, wanted, now)


def _device(
    fleet: VirtualFleet, number: int, base: Base, box: Box, reach: tuple[ServerConfig, int]
) -> int:
    """Make a device with samples and labels; return how many windows it has."""
    name, (server, port) = fleet.name(number), reach
    state = box.device(name)
    place = ("--state", str(state))
    authority, key = str(box.server.authority), str(box.server.release_public)
    root = ("--root-certificate", authority, "--release-key", key)
    _do("init", "--name", name, "--server", server.address, *root, "--base", str(box.base), *place)
    config, record = load_config(state), base.record
    intake = Intake(
        channels=tuple(channel for channel, _ in record.channels),
        units=tuple(unit for _, unit in record.channels),
        rate_hz=record.rate_hz,
    )
    # The server's clock is this one, so there is nothing to wait for.
    run = config.run.model_copy(update={"wait_for_clock_s": 0.0, "recycle_at": ""})
    ours = {"intake": intake, "supernode_port": port, "run": run}
    save_config(config.model_copy(update=ours), state)
    files = write_recordings(fleet, number, state / "recordings")
    mine = ("--person", name, *place)
    for side, path in (("train", files.train), ("held-out", files.held_out)):
        _do("ingest", str(path), "--split", side, *mine)
    said = _do("label", "--file", str(files.labels), *mine)
    return int(said["windows"])


def _do(*words: str) -> dict[str, Any]:
    """Run a command of a device and return its data."""
    return _answer(words, fleet_device)


def _answer(words: Sequence[str], command: Callable[[list[str]], int]) -> dict[str, Any]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = command([*words, "--format", "json"])
    if code == 130:
        raise KeyboardInterrupt
    try:
        told = json.loads(printed.getvalue())
    except ValueError:
        told = {}
    if code == 0 and told.get("status") == "ok":
        data: dict[str, Any] = told["data"]
        return data
    kind: type[FleetError] = KINDS.get(code, RoundError)
    what = f"fleet-device {words[0]}: {told.get('message', f'exit code {code}')}"
    raise kind(told.get("error_code", "device-setup"), what, told.get("hint", ""))
