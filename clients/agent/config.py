"""The device's configuration: one TOML file in the state directory, one frozen record.

``fleet-device init`` writes the file with a comment over each key; ``docs/device-config.md`` lists
them. A file that breaks a rule is refused with every problem at once.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.drifting.settings import Drift
from clients.agent.policy import Policy
from clients.agent.private.settings import Personal
from clients.agent.pseudo.settings import PseudoLabels
from fleet.errors import InputError, StorageError
from fleet.files import write_text
from fleet.tables import Table, lines_of

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same reader, which Python 3.10 lacks; the extra device-agent brings it
    import tomli as tomllib

__all__ = [
    "AGENT_SOCKET",
    "BASE_COPY",
    "CONFIG_FILE",
    "DECISIONS_FILE",
    "MAX_CONFIG_BYTES",
    "PRIVATE_KEY",
    "PUBLIC_KEY",
    "Caps",
    "DeviceConfig",
    "Intake",
    "Interpreters",
    "Run",
    "load_config",
    "parse_config",
    "render_config",
    "save_config",
]

CONFIG_FILE = "device.toml"
BASE_COPY = Path("model") / "base.safetensors"
PRIVATE_KEY = "node-key"
PUBLIC_KEY = "node-key.pub"
AGENT_SOCKET = "agent.sock"
DECISIONS_FILE = "decisions.jsonl"
MAX_CONFIG_BYTES = 256 * 2**10
MIB = 2**20
HINT = "The keys and their ranges are listed in docs/device-config.md."
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
UNITS = ("m/s^2", "g", "mg", "rad/s", "deg/s", "uT", "gauss")


class Intake(Table):
    """What the sensor delivers, and how its axes become the base's channels."""

    channels: tuple[str, ...] = Field(
        default=("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"),
        min_length=1,
        max_length=64,
        description="The sensor's columns, in their order in a sample.",
    )
    units: tuple[str, ...] = Field(
        default=("m/s^2", "m/s^2", "m/s^2", "rad/s", "rad/s", "rad/s"),
        description=f"Unit of each column: {', '.join(UNITS)}.",
    )
    axes: dict[str, str] = Field(
        default_factory=dict,
        description=(
            'Channel of the base to column of the sensor, e.g. { acc_x = "-acc_y" }: a minus turns'
            " the axis. {}: the columns have the channels' names."
        ),
    )
    rate_hz: float = Field(
        default=50.0, gt=0, le=100_000, description="Samples per second, as mounted."
    )

    @model_validator(mode="after")
    def _agree(self) -> Intake:
        wrong = [f"channel {name!r} twice" for name in _repeated(self.channels)]
        if len(self.units) != len(self.channels):
            wrong.append(f"{len(self.units)} units for {len(self.channels)} channels")
        wrong += [f"unit {unit!r} is none of {', '.join(UNITS)}" for unit in _strange(self.units)]
        for channel, column in self.axes.items():
            if not {column, column.lstrip("+-")} & set(self.channels):
                wrong.append(f"axes.{channel} names the column {column!r}, which is no channel")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Caps(Table):
    """Most bytes that the device's store keeps of each kind; the oldest goes first."""

    windows_bytes: int = Field(default=256 * MIB, ge=1, description="Signals of all windows.")
    unlabelled_bytes: int = Field(
        default=64 * MIB, ge=1, description="Of these: windows without a label, kept for drift."
    )
    replay_bytes: int = Field(
        default=32 * MIB, ge=1, description="Of these: windows kept for replay."
    )
    labels_bytes: int = Field(default=4 * MIB, ge=1, description="Labels, with their history.")
    journal_bytes: int = Field(default=4 * MIB, ge=1, description="The training journal.")
    outbox_bytes: int = Field(
        default=16 * MIB, ge=1, description="Updates; delivered ones go first."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Caps:
        parts = {"unlabelled-bytes": self.unlabelled_bytes, "replay-bytes": self.replay_bytes}
        wrong = [
            f"{name} is {size}, more than windows-bytes {self.windows_bytes}"
            for name, size in parts.items()
            if size > self.windows_bytes
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def total_bytes(self) -> int:
        """Most bytes of all kinds together; two are parts of the windows."""
        return self.windows_bytes + self.labels_bytes + self.journal_bytes + self.outbox_bytes


class Interpreters(Table):
    """Which Python runs what; on a Jetson the two differ."""

    agent: str = Field(
        default="",
        description='Python with the device\'s own torch; "": the one that runs fleet-device.',
    )
    bridge: str = Field(
        default="",
        description='Python 3.11 or later with Flower; "": the one that runs fleet-device.',
    )

    @field_validator("agent", "bridge")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError(f"an absolute path, or empty; not {value!r}")
        return value


class Run(Table):
    """How `fleet-device run` keeps agent and SuperNode running."""

    recycle_at: str = Field(
        default="03:30",
        pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9])?$",
        description=(
            "Local time from which the SuperNode, which never frees past runs, is restarted each"
            ' night, up to 45 min later by the device\'s name; "": never.'
        ),
    )
    wait_for_clock_s: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        description="Seconds that the SuperNode waits for a set clock; then it starts anyway.",
    )
    log_bytes: int = Field(
        default=4 * MIB,
        ge=2**16,
        description="Most bytes of each log under log/, its older half included.",
    )


class DeviceConfig(Table):
    """Everything that an operator decides about one device."""

    name: str = Field(
        pattern=NAME, description="Name of the device in the fleet: letters, digits, . _ and -."
    )
    base: str = Field(
        default="",
        description="Where init took the base from; the device works with its copy in model/.",
    )
    server: str = Field(default="", description='Server as HOST:PORT; "": not chosen yet.')
    root_certificate: str = Field(
        default="ca.crt", description="PEM file of the root that signed the server's certificate."
    )
    release_key: str = Field(
        default="",
        description=(
            "PEM file of the public keys by which releases are verified, pinned by fleet-device"
            ' trust; "": they are not verified.'
        ),
    )
    supernode_port: int = Field(
        default=9094,
        ge=1,
        le=65535,
        description="Loopback port of the SuperNode; two devices on one machine need two.",
    )
    intake: Intake = Field(default_factory=Intake)
    caps: Caps = Field(default_factory=Caps)
    policy: Policy = Field(default_factory=Policy)
    drift: Drift = Field(default_factory=Drift)
    interpreters: Interpreters = Field(default_factory=Interpreters)
    run: Run = Field(default_factory=Run)
    personal: Personal = Field(default_factory=Personal)
    statistics: OwnStatistics = Field(default_factory=OwnStatistics)
    pseudo_labels: PseudoLabels = Field(default_factory=PseudoLabels)

    @field_validator("server")
    @classmethod
    def _address(cls, value: str) -> str:
        found = ADDRESS.fullmatch(value)
        if value and (found is None or not 1 <= int(found[2]) <= 65535):
            raise ValueError(f"HOST:PORT with a port of 1 to 65535, not {value!r}")
        return value

    def base_path(self, state: Path) -> Path:
        """Return the device's own copy of the base, which serving put there."""
        return state / BASE_COPY

    def certificate_path(self, state: Path) -> Path:
        """Return the root certificate's file; a relative one lies in the state directory."""
        return state / self.root_certificate

    def release_key_path(self, state: Path) -> Path | None:
        """Return the pinned release keys' file; ``None``: none is pinned."""
        return state / self.release_key if self.release_key else None

    def host_and_port(self) -> tuple[str, int] | None:
        """Return the server's host (IPv6 without brackets) and port; ``None``: not chosen."""
        if not self.server:
            return None
        host, _, port = self.server.rpartition(":")
        return host.strip("[]"), int(port)

    def python_of(self, process: str) -> str:
        """Return the interpreter of ``agent`` or ``bridge``."""
        return str(getattr(self.interpreters, process)) or sys.executable


def parse_config(text: str, where: str = CONFIG_FILE) -> DeviceConfig:
    """Read a config file's text.

    Raises:
        InputError: ``device-config-toml`` when it is no TOML, ``device-config`` with every broken
            rule at once.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("device-config-toml", f"{where} is no TOML: {error}", HINT) from error
    try:
        return DeviceConfig.model_validate(values)
    except ValidationError as error:
        lines = "".join(f"\n  - {problem}" for problem in _problems(error))
        raise InputError(
            "device-config", f"{where} breaks {error.error_count()} rule(s):{lines}", HINT
        ) from error


def load_config(state: Path) -> DeviceConfig:
    """Read the config file of a state directory.

    Raises:
        InputError: ``no-device`` when there is none, ``device-config-toml``, ``device-config``.
        StorageError: ``unreadable``.
    """
    path = state / CONFIG_FILE
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        text = content.decode()
    except FileNotFoundError as error:
        raise InputError(
            "no-device", f"there is no {path}", "Make one: fleet-device init --name NAME"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("device-config-toml", f"{path} is not UTF-8: {error}", HINT) from error
    except OSError as error:
        raise StorageError(
            "unreadable", f"{path} could not be read ({error.strerror})", "See: fleet-device doctor"
        ) from error
    if len(content) > MAX_CONFIG_BYTES:
        raise InputError(
            "device-config-toml", f"{path} is larger than {MAX_CONFIG_BYTES} bytes", HINT
        )
    return parse_config(text, str(path))


def render_config(config: DeviceConfig) -> str:
    """Return the file's text: every key with its value, a comment over each."""
    head = "# What this device is and may do; every key is explained in docs/device-config.md."
    return "\n".join([head, *lines_of(config)]) + "\n"


def save_config(config: DeviceConfig, state: Path) -> Path:
    """Write the config file durably; return its path."""
    path = state / CONFIG_FILE
    write_text(path, render_config(config))
    return path


def _problems(error: ValidationError) -> list[str]:
    found = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "file"
        value: Any = problem["input"]
        shown = f" (it is {value!r})" if isinstance(value, (str, int, float)) else ""
        found.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return found


def _repeated(names: tuple[str, ...]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _strange(units: tuple[str, ...]) -> list[str]:
    return sorted(set(units) - set(UNITS))
