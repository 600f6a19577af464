"""The systemd units of a device: agent, SuperNode, and the SuperNode's nightly restart.

Plain functions from values to text; ``fleet-device install-service`` prints or writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clients.agent.config import AGENT_SOCKET, PRIVATE_KEY, DeviceConfig
from fleet.errors import InputError
from fleet.measure.resident import ALLOCATOR_ENVIRONMENT

__all__ = [
    "AGENT_MODULE",
    "Host",
    "agent_command",
    "agent_environment",
    "supernode_command",
    "supernode_environment",
    "units_of",
]

# The long-lived learner; see design: the device is two processes.
AGENT_MODULE = "clients.agent.daemon"
AGENT, SUPERNODE, RECYCLE = "corefleet-agent", "corefleet-supernode", "corefleet-recycle"

# Flower's telemetry, its look for updates and its installing of dependencies are off: a device
# sends nothing but updates, and a run must not replace the packages that it was tested with.
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}

# A keyed node that restarts is refused for up to 60 s, while its old session lasts; so a restart
# that fails is not the last, and later ones wait longer (systemd before 254 waits RestartSec).
RESTART = """Restart=always
RestartSec=10
RestartSteps=5
RestartMaxDelaySec=120
TimeoutStopSec=60"""

HARDENING = """UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet="""


@dataclass(frozen=True)
class Host:
    """Where and as whom the services run.

    Args:
        state: State directory, absolute.
        user: Unix user; the owner of the state directory.
        memory_max: Memory limit of the agent in systemd's form, e.g. ``2G``; ``""``: none.
    """

    state: Path
    user: str
    memory_max: str = ""


def units_of(config: DeviceConfig, host: Host) -> dict[str, str]:
    """Return the units' texts by file name.

    Raises:
        InputError: ``no-server`` without an address, ``path-unsafe`` for a path that systemd would
            read as something else.
    """
    if not config.server:
        raise InputError(
            "no-server",
            f"{config.name} has no server, and its SuperNode would call none",
            f'Write server = "HOST:PORT" into {host.state / "device.toml"}.',
        )
    paths = (host.state, config.certificate_path(host.state))
    pythons = (config.python_of("agent"), config.python_of("bridge"))
    for value in (*map(str, paths), *pythons):
        # Spaces, quotes, specifiers (%) and escapes would change what root's systemd runs.
        if any(character.isspace() or character in "\"'%\\$" for character in value):
            raise InputError("path-unsafe", f"{value!r} may not stand in a unit", "Move it.")
    units = {
        f"{AGENT}.service": _agent(config, host),
        f"{SUPERNODE}.service": _supernode(config, host),
    }
    if config.run.recycle_at:
        units[f"{RECYCLE}.service"] = _recycle()
        units[f"{RECYCLE}.timer"] = _timer(config.run.recycle_at)
    return units


def agent_command(config: DeviceConfig, state: Path) -> list[str]:
    """Return the agent's command line."""
    return [config.python_of("agent"), "-m", AGENT_MODULE, "--state", str(state)]


def agent_environment(state: Path) -> dict[str, str]:
    """Return what the agent's environment must hold; memory that is freed goes back at once."""
    return {"COREFLEET_STATE": str(state), **ALLOCATOR_ENVIRONMENT}


def supernode_command(config: DeviceConfig, state: Path) -> list[str]:
    """Return the SuperNode's command line; TLS and the node's key are never left out."""
    program = Path(config.python_of("bridge")).with_name("flower-supernode")
    return [
        str(program),
        *("--superlink", config.server),
        *("--root-certificates", str(config.certificate_path(state))),
        *("--auth-supernode-private-key", str(state / PRIVATE_KEY)),
        *("--host", "127.0.0.1", "--port", str(config.supernode_port)),
        *("--node-config", f'device="{config.name}" agent-socket="{state / AGENT_SOCKET}"'),
    ]


def supernode_environment(config: DeviceConfig, state: Path) -> dict[str, str]:
    """Return what the SuperNode's environment must hold."""
    folder = Path(config.python_of("bridge")).parent
    return {
        **FLOWER,
        "FLWR_HOME": str(state / "flwr"),
        "HOME": str(state),
        # The SuperNode starts its children by their bare names.
        "PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin",
    }


def _agent(config: DeviceConfig, host: Host) -> str:
    command = agent_command(config, host.state)
    limit = f"MemoryMax={host.memory_max}\n" if host.memory_max else ""
    # The GPU is a device, so neither PrivateDevices nor ProtectClock, which closes all but the
    # real-time clock; and no MemoryDenyWriteExecute, since CUDA compiles at run time.
    return f"""[Unit]
Description=Corefleet agent of {config.name}
After=local-fs.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={host.user}
ExecStart={_words(command)}
{_environment(agent_environment(host.state))}
{RESTART}
# What is wrong with the configuration or the installation stays wrong.
RestartPreventExitStatus={InputError.exit_code}
# Learning runs beside the device's main job.
Nice=10
IOSchedulingClass=idle
{limit}ReadWritePaths={host.state}
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
{HARDENING}

[Install]
WantedBy=multi-user.target
"""


def _supernode(config: DeviceConfig, host: Host) -> str:
    environment = supernode_environment(config, host.state)
    return f"""[Unit]
Description=Flower SuperNode of {config.name}
# The server takes signatures that are at most 5 s ahead of its clock, so the clock comes first.
After=network-online.target time-sync.target {AGENT}.service
Wants=network-online.target time-sync.target {AGENT}.service
StartLimitIntervalSec=0

[Service]
Type=exec
User={host.user}
ExecStart={_words(supernode_command(config, host.state))}
{_environment(environment)}
{RESTART}
ReadWritePaths={host.state}
PrivateDevices=yes
ProtectClock=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
{HARDENING}

[Install]
WantedBy=multi-user.target
"""


def _recycle() -> str:
    return f"""[Unit]
Description=Restart the Flower SuperNode, which never frees its past runs

[Service]
Type=oneshot
ExecStart=/bin/systemctl try-restart {SUPERNODE}.service
"""


def _timer(at: str) -> str:
    return f"""[Unit]
Description=Nightly restart of the Flower SuperNode

[Timer]
OnCalendar=*-*-* {at}:00
# A fleet that restarts in one second is a load on its server.
RandomizedDelaySec=45min
Unit={RECYCLE}.service

[Install]
WantedBy=timers.target
"""


def _words(command: list[str]) -> str:
    # systemd takes single quotes around a word that has spaces or double quotes.
    return " ".join(f"'{w}'" if any(c in w for c in ' "') else w for w in command)


def _environment(values: Mapping[str, str]) -> str:
    return "\n".join(f'Environment="{name}={value}"' for name, value in values.items())
