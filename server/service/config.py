"""The server's configuration: one TOML file in its folder, one frozen record."""

from __future__ import annotations

from pathlib import Path

import tomllib
from pydantic import Field, ValidationError, model_validator

from fleet.errors import InputError
from fleet.federate.records import problems_of
from fleet.files import write_text
from fleet.tables import Table, lines_of
from server.service.folder import ServerFolder, read_bytes

__all__ = [
    "ControlApi",
    "Front",
    "Limits",
    "MetricsPage",
    "ServerConfig",
    "Service",
    "SuperLink",
    "load_config",
    "save_config",
]

MIB = 2**20
HINT = "Every key has its rule in a comment; fleet server init writes a file with all of them."


class Front(Table):
    """What devices reach."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on: 127.0.0.1 for this machine alone, 0.0.0.0 for all.",
    )
    port: int = Field(default=8443, ge=1, le=65535, description="Port that devices call.")
    names: tuple[str, ...] = Field(
        default=(),
        max_length=32,
        description="Names and addresses of this machine that devices call; in its certificate.",
    )
    certificate: str = Field(
        default="",
        description='Certificate chain (PEM) of your own; "": of the development authority.',
    )
    key: str = Field(default="", description="Private key (PEM) of that certificate.")

    @model_validator(mode="after")
    def _both(self) -> Front:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together; one of them is empty")
        return self


class SuperLink(Table):
    """Flower's server, on loopback alone."""

    port: int = Field(
        default=9393, ge=1, le=65535, description="Its one port on 127.0.0.1; never forward it."
    )


class Service(Table):
    """The fleet's standing service: one long run of the app that goes by the registry."""

    standing: bool = Field(
        default=False,
        description="Whether `fleet server up` starts it, and starts it again when it has ended.",
    )


class ControlApi(Table):
    """The control API, by which operators reach this server from elsewhere."""

    listen: str = Field(
        default="",
        pattern=r"^(|.+:[0-9]{1,5})$",
        description='HOST:PORT of the control API; "": operators work on this machine alone.',
    )


class MetricsPage(Table):
    """What Prometheus reads, with health and readiness (docs/operate.md)."""

    listen: str = Field(
        default="",
        pattern=r"^(|.+:[0-9]{1,5})$",
        description='HOST:PORT of the metrics, e.g. 127.0.0.1:9464; "": none. Nobody is asked who'
        " they are there.",
    )


class Limits(Table):
    """What one device, or whoever calls, may ask of the front."""

    body_bytes: int = Field(
        default=16 * MIB, ge=2**16, le=2**30, description="Most bytes of a request's body."
    )
    buffered_bytes: int = Field(
        default=256 * MIB, ge=2**16, description="Most bytes of all bodies held at once."
    )
    header_bytes: int = Field(
        default=16 * 2**10, ge=2**10, le=2**20, description="Most bytes of a request's head."
    )
    handshake_s: float = Field(
        default=10.0, gt=0, le=600, description="Longest TLS handshake, seconds."
    )
    header_s: float = Field(
        default=10.0, gt=0, le=600, description="Longest time from a head's first byte to its last."
    )
    body_s: float = Field(
        default=120.0, gt=0, le=3600, description="Longest time for a request's body, seconds."
    )
    idle_s: float = Field(
        default=60.0, gt=0, le=3600, description="Longest silence between two requests, seconds."
    )
    answer_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="Longest time until an answer has reached the caller, seconds.",
    )
    connections: int = Field(default=1024, ge=1, le=65536, description="Most open connections.")
    connections_per_address: int = Field(
        default=256, ge=1, le=65536, description="Of these: most of one address."
    )
    upstream_connections: int = Field(
        default=64, ge=1, le=1024, description="Most requests at the SuperLink at once."
    )
    requests_per_s: float = Field(
        default=100.0, gt=0, le=1e6, description="Sustained requests per second of one address."
    )
    burst: int = Field(
        default=400, ge=1, le=10**6, description="Requests of one address that may come at once."
    )
    bytes_per_minute: int = Field(
        default=64 * MIB,
        ge=2**16,
        le=2**40,
        description="Bytes of one device's bodies per minute; one body always passes.",
    )

    @property
    def volume_bytes(self) -> int:
        """Bytes of one device's bodies that may come at once, and again in each minute."""
        return max(self.bytes_per_minute, self.body_bytes)


class ServerConfig(Table):
    """Everything that an operator decides about the server."""

    database: str = Field(
        default="",
        description='URL of the registry\'s database; "": an SQLite file in this folder.',
    )
    log_bytes: int = Field(
        default=16 * MIB,
        ge=2**16,
        description="Most bytes of each log under log/, its older half included.",
    )
    front: Front = Field(default_factory=Front)
    superlink: SuperLink = Field(default_factory=SuperLink)
    service: Service = Field(default_factory=Service)
    control: ControlApi = Field(default_factory=ControlApi)
    metrics: MetricsPage = Field(default_factory=MetricsPage)
    limits: Limits = Field(default_factory=Limits)

    @model_validator(mode="after")
    def _two_ports(self) -> ServerConfig:
        if self.front.port == self.superlink.port:
            raise ValueError(f"front and superlink have the same port {self.front.port}")
        return self

    @property
    def address(self) -> str:
        """What a device's configuration calls the server: HOST:PORT."""
        host = self.front.names[0] if self.front.names else "127.0.0.1"
        return f"[{host}]:{self.front.port}" if ":" in host else f"{host}:{self.front.port}"

    @property
    def superlink_address(self) -> str:
        """The SuperLink's HOST:PORT on loopback."""
        return f"127.0.0.1:{self.superlink.port}"

    def certificate_path(self, folder: ServerFolder) -> Path:
        """Return the front's certificate; a relative one lies in the folder."""
        return folder.path / (self.front.certificate or folder.certificate)

    def key_path(self, folder: ServerFolder) -> Path:
        """Return the private key of the front's certificate."""
        return folder.path / (self.front.key or folder.key)


def load_config(folder: ServerFolder) -> ServerConfig:
    """Read the configuration of a server.

    Raises:
        InputError: ``no-server``, or ``server-config`` with every broken rule at once.
        StorageError: ``unreadable``.
    """
    folder.check_made()
    try:
        values = tomllib.loads(read_bytes(folder.config).decode())
        return ServerConfig.model_validate(values)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("server-config", f"{folder.config} is no TOML: {error}", HINT) from error
    except ValidationError as error:
        raise InputError(
            "server-config", f"{folder.config} breaks a rule: {problems_of(error)}", HINT
        ) from error


def save_config(config: ServerConfig, folder: ServerFolder) -> None:
    """Write the configuration durably: every key with its value, a comment over each."""
    head = "# What this server is and allows; see docs/operate.md."
    write_text(folder.config, "\n".join([head, *lines_of(config)]) + "\n")
