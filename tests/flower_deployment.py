"""A real deployment on loopback for tests: TLS, node keys, SuperLink, SuperExec and SuperNodes.

    SuperLink (--isolation process) ── SuperExec ── flwr-serverapp, one for a run
        │ TLS, signed by the node's key
    SuperNode, one for a device ── its SuperExec ── flwr-clientapp, one for a message

Every process is Flower's own, started by the commands that an operator gives.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.agent.config import PUBLIC_KEY, DeviceConfig, save_config
from clients.agent.keys import make_keys
from clients.agent.service import supernode_command
from tests.clients.agent.doctor.authority import Authority
from tests.flower_processes import (
    CONNECTION,
    FlowerProcesses,
    Setting,
    free_port,
    fresh_setting,
    over_at_last,
    program,
    run_words,
    wait_until_healthy,
    words_of,
    write_connection,
)

__all__ = ["FlowerDeployment", "flower_deployment", "with_node_config"]

REGISTER_TIMEOUT_S = 60.0
HOST = "127.0.0.1"
# How often a SuperExec looks for tasks, seconds; 1 by default, once for each message.
EAGER = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}


@dataclass(frozen=True)
class FlowerDeployment(FlowerProcesses):
    """A SuperLink with TLS that knows its nodes by their keys.

    Attributes:
        port: Its one port.
    """

    port: int = 0

    @property
    def server(self) -> str:
        """Address of the SuperLink, as a device's config has it."""
        return f"{HOST}:{self.port}"

    @property
    def root_certificate(self) -> Path:
        """PEM file of the root that signed the SuperLink's certificate."""
        return self.folder / "ca.crt"

    def enroll(self, state: Path, config: DeviceConfig) -> DeviceConfig:
        """Make a device one of this server's; its SuperNode does not run yet.

        Args:
            state: Its state directory; made when needed, with a key pair if it has none.
            config: What it is; its server, root certificate and port are set here.

        Returns:
            The config as it was written to the state directory.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (state / PUBLIC_KEY).exists():
            make_keys(state, config.name)
        shutil.copyfile(self.root_certificate, state / "ca.crt")
        ours = {"server": self.server, "root_certificate": "ca.crt", "supernode_port": free_port()}
        config = config.model_copy(update=ours)
        save_config(config, state)
        register = ["supernode", "register", str(state / PUBLIC_KEY), CONNECTION]
        self.flwr([*register, "--name", config.name], REGISTER_TIMEOUT_S)
        return config

    def start_supernode(
        self, state: Path, config: DeviceConfig, command: Sequence[str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a device's SuperNode.

        Args:
            state: Its state directory.
            config: What :meth:`enroll` returned.
            command: Its command line; that of the device's own service if not given.
        """
        command = supernode_command(config, state) if command is None else command
        # Two nodes that unpack the same bundle into one home would get into each other's way.
        home = {"FLWR_HOME": str(state / "flwr")}
        return self.start(f"supernode-{config.name}", command, environment=home)

    def flwr_run(
        self, app_dir: Path, run_config: Mapping[str, Setting] | Path, timeout_s: float
    ) -> str:
        """Run the app in ``app_dir`` to its end and return what ``flwr run`` printed.

        ``flwr run`` succeeds even when every device failed: judge by what the run wrote.

        Args:
            app_dir: Folder with the app's ``pyproject.toml``.
            run_config: Overrides of keys that the app declares, or a TOML file of them.
            timeout_s: Deadline of the whole command.
        """
        return self.flwr([*run_words(app_dir), *words_of(run_config)], timeout_s)


@contextlib.contextmanager
def flower_deployment(environment: Mapping[str, str] | None = None) -> Iterator[FlowerDeployment]:
    """Start a SuperLink and its SuperExec; end them with every process of the deployment.

    Args:
        environment: Added to the environment of all processes.
    """
    folder, surroundings = fresh_setting({**EAGER, **(environment or {})})
    deployment = FlowerDeployment(folder, surroundings, port=free_port())
    with over_at_last(deployment):
        authority = Authority()
        deployment.root_certificate.write_bytes(authority.pem())
        certificate, key = authority.server_files(folder)
        secret = folder / "superexec-secret"
        secret.write_text(secrets.token_hex(32))
        root = str(deployment.root_certificate)
        write_connection(folder, deployment.port, f'root-certificates = "{root}"')
        shared = ["--superexec-auth-secret-file", str(secret)]
        superlink = deployment.start(
            "superlink",
            [
                program("flower-superlink"),
                *("--ssl-ca-certfile", root),
                *("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)),
                *("--host", HOST, "--port", str(deployment.port)),
                *("--database", str(folder / "superlink.db")),
                *("--enable-supernode-auth", "--isolation", "process", *shared),
            ],
        )
        context = ssl.create_default_context(cafile=root)
        wait_until_healthy(deployment, superlink, f"https://{deployment.server}/health", context)
        address = ("--runtime-api-address", deployment.server, "--root-certificates", root)
        deployment.start("superexec", [program("flower-superexec"), *address, *shared])
        yield deployment


def with_node_config(command: Sequence[str], node_config: str) -> list[str]:
    """Return a SuperNode's command with another node config, in Flower's spelling."""
    words = list(command)
    words[words.index("--node-config") + 1] = node_config
    return words
