"""What ``fleet up`` was asked for, and what follows from it: run, policy, names of its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fleet.config import RunConfig
from fleet.errors import InputError
from server.service.folder import ServerFolder
from server.standing.policy import FleetPolicy

__all__ = ["LARGEST_BOX", "Box", "Wanted"]

LARGEST_BOX = 32
"""Devices of a box; each is two processes with a Python of their own."""
# The address of a Unix socket has 107 bytes.
LONGEST_SOCKET = 107
SOCKET = Path("device-00000") / "agent.sock"


@dataclass(frozen=True)
class Wanted:
    """A fleet in a box.

    Args:
        devices: Device agents.
        data: Name or path of a data set.
        rounds: Rounds after which it ends; 0: it goes on until Ctrl-C.
        seed: Root of every random choice.
        base: Path of a base; empty: one is trained on the source people.
        base_epochs: Passes over the source people's windows then.
        rank: Columns of each core.
        rate: Learning rate; 0: the method's own.
        windows: Most windows of a device to train on, and as many to be judged on; 0 for all.
        evaluate_every: Rounds between evaluations; 0: the last of ``rounds``, else every one.
        deadline_s: Seconds from the opening of a round to its close.
        control: ``HOST:PORT`` of the control API; empty: a port of loopback that is free when the
            box is made.
    """

    devices: int = 5
    data: str = ""
    rounds: int = 0
    seed: int = 0
    base: str = ""
    base_epochs: int = 12
    rank: int = 4
    rate: float = 0.0
    windows: int = 0
    evaluate_every: int = 0
    deadline_s: float = 600.0
    control: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= LARGEST_BOX:
            raise InputError(
                "box-size",
                f"a fleet in a box has 1 to {LARGEST_BOX} devices, not {self.devices}",
                "Thousands of devices are simulated: fleet simulate --devices 10000",
            )

    def config(self) -> RunConfig:
        """Return the run that has the same devices, base and windows.

        Raises:
            InputError: Of the values that a run cannot have.
        """
        return RunConfig.parse(
            {
                "data": self.data,
                "devices": self.devices,
                "windows_per_device": self.windows,
                "seed": self.seed,
                "rank": self.rank,
                "base": self.base,
                "base_epochs": self.base_epochs,
                "learning_rate": self.rate,
                "rounds": max(self.rounds, 1),
            }
        )

    def policy(self, base: str, rank: int, rate: float) -> FleetPolicy:
        """Return the fleet's policy: everybody takes part, one round after the other.

        Args:
            base: Digest of the base.
            rank: Of its frames.
            rate: Learning rate.
        """
        return FleetPolicy.parse(
            {
                "base": base,
                "rank": rank,
                "learning_rate": rate,
                "seed": self.seed,
                # With a number of rounds every update counts, so that the same seed ends in the
                # same release; without one a device may be killed to see what happens.
                "minimum": self.devices if self.rounds else 1,
                "quorum": self.devices if self.rounds else 0,
                "deadline_s": self.deadline_s,
                "every_s": 1.0,
                "rounds": self.rounds,
                "evaluate_every": self.evaluate_every or self.rounds or 1,
            }
        )

    @property
    def made_of(self) -> dict[str, Any]:
        """What cannot change once the devices of a box are made; JSON."""
        kept = {"devices", "data", "seed", "base", "base_epochs", "rank", "windows"}
        values = asdict(self)
        return {each.name: values[each.name] for each in fields(self) if each.name in kept}


@dataclass(frozen=True)
class Box:
    """Names of the files of a fleet in a box.

    Args:
        path: Its folder, absolute.

    Raises:
        InputError: ``folder-deep`` for one in which no socket can be.
    """

    path: Path

    def __post_init__(self) -> None:
        if (length := len(bytes(self.path / SOCKET))) > LONGEST_SOCKET:
            raise InputError(
                "folder-deep",
                f"a device's socket in {self.path} has a name of {length} bytes, at most "
                f"{LONGEST_SOCKET} are possible",
                "Choose a shorter one: --folder DIR.",
            )

    @property
    def server(self) -> ServerFolder:
        """Of the server."""
        return ServerFolder(self.path / "server")

    @property
    def base(self) -> Path:
        """What releases are relative to."""
        return self.path / "base.safetensors"

    @property
    def made(self) -> Path:
        """Written when every device is made."""
        return self.path / "box.json"

    @property
    def begun(self) -> Path:
        """What a box is made of, while it is being made."""
        return self.path / "making.json"

    def device(self, name: str) -> Path:
        """Return a device's state directory."""
        return self.path / name
