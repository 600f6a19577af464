from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from clients.agent import service
from clients.agent.cli import setup
from clients.agent.cli.root import run
from clients.agent.config import (
    CONFIG_FILE,
    PRIVATE_KEY,
    PUBLIC_KEY,
    DeviceConfig,
    Interpreters,
    load_config,
    save_config,
)
from clients.agent.service import Host, units_of
from fleet.errors import InputError
from tests.clients.agent.cli.conftest import Json

SERVED = DeviceConfig(
    name="jetson-00",
    server="fleet.example:443",
    interpreters=Interpreters(agent="/usr/bin/python3", bridge="/opt/flower/bin/python"),
)


def test_init_makes_a_folder_for_the_owner_alone_a_key_pair_and_a_config(
    ask: Json, state: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root.pem"
    root.write_text("a certificate")
    code, envelope = ask(
        *("init", "--name", "kitchen-1", "--server", "fleet.example:443"),
        *("--root-certificate", root, "--agent-python", "/usr/bin/python3"),
    )
    assert code == 0
    assert envelope["data"]["state"] == str(state)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / PRIVATE_KEY).stat().st_mode) == 0o600
    assert (state / "ca.crt").read_text() == "a certificate"
    config = load_config(state)
    assert (config.name, config.server) == ("kitchen-1", "fleet.example:443")
    assert config.interpreters.agent == "/usr/bin/python3"


def test_a_second_init_keeps_what_is_there_and_adds_what_is_missing(ask: Json, state: Path) -> None:
    assert ask("init", "--name", "a")[0] == 0
    key = (state / PRIVATE_KEY).read_bytes()
    text = (state / CONFIG_FILE).read_text().replace("= 75.0", "= 60.0")
    (state / CONFIG_FILE).write_text(text)
    assert ask("init", "--name", "a")[0] == 0
    assert (state / PRIVATE_KEY).read_bytes() == key
    assert load_config(state).policy.max_temperature_c == 60.0
    for name in (PRIVATE_KEY, PUBLIC_KEY):
        (state / name).unlink()
    assert ask("init", "--name", "a")[0] == 0
    assert (state / PRIVATE_KEY).is_file()


def test_a_second_init_names_the_server_that_the_first_did_not(ask: Json, state: Path) -> None:
    assert ask("init", "--name", "a", "--state", state)[0] == 0
    assert ask("init", "--server", "fleet.example:443", "--state", state)[0] == 0
    assert load_config(state).server == "fleet.example:443"
    assert ask("init", "--server", "other.example:443", "--state", state)[0] == 0
    assert load_config(state).server == "fleet.example:443"  # what was decided stays


def test_a_second_device_on_a_machine_gets_another_port(
    ask: Json, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("init", "--name", "a", "--supernode-port", 9095)[0] == 0
    assert load_config(state).supernode_port == 9095
    assert run(["init", "--supernode-port", "9096"]) == 0
    assert "its supernode-port is 9095" in capsys.readouterr().err
    assert load_config(state).supernode_port == 9095  # what was decided stays


def test_a_second_init_names_the_port_that_the_first_did_not(ask: Json, state: Path) -> None:
    assert ask("init", "--name", "a")[0] == 0
    assert load_config(state).supernode_port == 9094
    assert ask("init", "--supernode-port", 9095)[0] == 0
    assert load_config(state).supernode_port == 9095


def test_an_init_says_what_to_type_next_and_where(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "--name", "a"]) == 0
    assert "Next: fleet-device ingest" in capsys.readouterr().err
    assert run(["init", "--server", "one:1"]) == 0
    told = capsys.readouterr().err
    assert f"Next, on the server: fleet device enroll {state / PUBLIC_KEY} --name a" in told


def test_a_second_init_needs_no_name(ask: Json, state: Path) -> None:
    assert ask("init")[1]["error_code"] == "name-missing"
    ask("init", "--name", "a")
    code, envelope = ask("init")
    assert (code, envelope["data"]["name"]) == (0, "a")


def test_a_server_named_too_late_is_not_written_and_that_is_said(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["init", "--name", "a", "--server", "one:1"])
    capsys.readouterr()
    assert run(["init", "--server", "two:2"]) == 0
    assert "its server is one:1" in capsys.readouterr().err
    assert load_config(state).server == "one:1"


def test_an_init_under_another_name_is_refused(ask: Json, state: Path) -> None:
    ask("init", "--name", "a")
    code, envelope = ask("init", "--name", "b")
    assert (code, envelope["error_code"]) == (4, "device-exists")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--name", "a b"], "device-config"),
        (["--name", "a", "--server", "nowhere"], "device-config"),
        (["--name", "a", "--agent-python", "python3"], "device-config"),
        (["--name", "a", "--supernode-port", "65536"], "device-config"),
        (["--name", "a", "--base", "/no/base"], "file-missing"),
        (["--name", "a", "--root-certificate", "/no/root"], "file-missing"),
    ],
)
def test_an_init_with_a_wrong_value_makes_nothing(
    ask: Json, state: Path, arguments: list[str], error: str
) -> None:
    code, envelope = ask("init", *arguments)
    assert (code, envelope["error_code"]) == (4, error)
    assert not state.exists()


def test_a_base_without_torch_says_what_is_missing(
    ask: Json, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "clients.agent.serving.serve", None)
    code, envelope = ask("init", "--name", "a", "--base", base)
    assert (code, envelope["error_code"]) == (4, "extra-missing")


def test_a_base_that_is_none_is_refused(ask: Json, state: Path, tmp_path: Path) -> None:
    pytest.importorskip("clients.agent.serving.serve")
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"x")
    code, envelope = ask("init", "--name", "a", "--base", base)
    assert code in (1, 4)
    assert envelope["status"] == "error"


def test_a_state_directory_that_cannot_be_made_is_told(ask: Json, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, envelope = ask("init", "--name", "a", "--state", tmp_path / "file" / "state")
    assert (code, envelope["error_code"]) == (1, "write-failed")


def test_enroll_prints_the_key_and_commands_that_write_and_register_it(
    ask: Json, state: Path, tmp_path: Path
) -> None:
    ask("init", "--name", "kitchen-1")
    code, envelope = ask("enroll")
    write, register = envelope["data"]["operator_commands"]
    assert code == 0
    assert shlex.split(register) == [
        *("fleet", "device", "enroll", "kitchen-1.pub", "--name", "kitchen-1")
    ]
    subprocess.run(["sh", "-c", write], cwd=tmp_path, check=True)
    written = (tmp_path / "kitchen-1.pub").read_bytes()
    assert written == (state / PUBLIC_KEY).read_bytes()
    load_ssh_public_key(written)


def test_enroll_prints_the_key_to_standard_output_alone(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["init", "--name", "a"])
    capsys.readouterr()
    assert run(["enroll"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (state / PUBLIC_KEY).read_text().strip()
    assert lines[2] == "fleet device enroll a.pub --name a"


def test_enroll_needs_a_key_and_refuses_what_a_shell_would_read_as_something_else(
    ask: Json, state: Path
) -> None:
    assert ask("enroll")[1]["error_code"] == "no-device"
    ask("init", "--name", "a")
    (state / PUBLIC_KEY).write_text("ecdsa AAAA '; rm -rf")
    assert ask("enroll")[1]["error_code"] == "key-damaged"
    (state / PUBLIC_KEY).unlink()
    assert ask("enroll")[1]["error_code"] == "no-key"


class Unit(RawConfigParser):
    """A unit file; systemd's keys are case-sensitive and may repeat, of which the last is kept."""

    def __init__(self, text: str) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read_string(text)


def test_the_units_start_agent_and_supernode_again_and_harden_them() -> None:
    units = units_of(SERVED, Host(Path("/var/lib/corefleet"), "corefleet", "2G"))
    for name in ("corefleet-agent.service", "corefleet-supernode.service"):
        unit = Unit(units[name])
        own = unit["Service"]
        assert (own["Restart"], own["RestartSec"], own["User"]) == ("always", "10", "corefleet")
        assert unit["Unit"]["StartLimitIntervalSec"] == "0"
        # A configuration that is refused is not asked for again every ten seconds.
        assert own.get("RestartPreventExitStatus") == ("4" if "agent" in name else None)
        assert own["ReadWritePaths"] == "/var/lib/corefleet"
        assert own["ProtectSystem"] == "strict"
        assert own["NoNewPrivileges"] == "yes"
        assert own["CapabilityBoundingSet"] == ""
    agent = Unit(units["corefleet-agent.service"])["Service"]
    assert agent["MemoryMax"] == "2G"
    assert agent["ExecStart"].split()[:3] == ["/usr/bin/python3", "-m", service.AGENT_MODULE]
    # Either would close the GPU.
    assert {"PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute"} & set(agent) == set()


def test_the_supernode_is_started_with_tls_and_the_nodes_key_after_the_clock_is_set() -> None:
    units = units_of(SERVED, Host(Path("/var/lib/corefleet"), "corefleet"))
    unit = Unit(units["corefleet-supernode.service"])
    words = shlex.split(unit["Service"]["ExecStart"])
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "/opt/flower/bin/flower-supernode"
    assert flags["--superlink"] == "fleet.example:443"
    assert flags["--root-certificates"] == "/var/lib/corefleet/ca.crt"
    assert flags["--auth-supernode-private-key"] == "/var/lib/corefleet/node-key"
    assert flags["--host"] == "127.0.0.1"
    assert 'agent-socket="/var/lib/corefleet/agent.sock"' in flags["--node-config"]
    assert "--insecure" not in words
    assert "time-sync.target" in unit["Unit"]["After"]
    assert "FLWR_TELEMETRY_ENABLED=0" in units["corefleet-supernode.service"]


def test_flower_reads_the_supernodes_command_line() -> None:
    flower = pytest.importorskip("flwr.supernode.cli.flower_supernode")
    config = pytest.importorskip("flwr.common.config")
    _, *arguments = service.supernode_command(SERVED, Path("/var/lib/corefleet"))
    found = flower._parse_args_run_supernode().parse_args(arguments)
    assert found.superlink == "fleet.example:443"
    assert config.parse_config_args([found.node_config]) == {
        "device": "jetson-00",
        "agent-socket": "/var/lib/corefleet/agent.sock",
    }


def test_flower_reads_both_keys_of_the_pair(ask: Json, state: Path) -> None:
    supernode = pytest.importorskip("flwr.supernode.cli.flower_supernode")
    register = pytest.importorskip("flwr.cli.supernode.register")
    ask("init", "--name", "a")
    command = service.supernode_command(load_config(state), state)
    arguments = supernode._parse_args_run_supernode().parse_args(
        [*command[1:2], "h:1", *command[3:]]
    )
    private, public = supernode._try_setup_client_authentication(arguments)
    assert private.public_key() == public
    assert register.try_load_public_key(state / PUBLIC_KEY)


def test_the_supernode_is_restarted_every_night() -> None:
    units = units_of(SERVED, Host(Path("/s"), "u"))
    timer = Unit(units["corefleet-recycle.timer"])["Timer"]
    assert timer["OnCalendar"] == "*-*-* 03:30:00"
    assert timer["Unit"] == "corefleet-recycle.service"
    once = Unit(units["corefleet-recycle.service"])["Service"]["ExecStart"]
    assert once.endswith("systemctl try-restart corefleet-supernode.service")


@pytest.mark.parametrize("state", ["/a b", "/a%h", "/a'b", "/a$b", '/a"b', "/a\\b", "/a\nb"])
def test_a_path_that_systemd_would_read_as_something_else_is_refused(state: str) -> None:
    with pytest.raises(InputError, match="may not stand in a unit"):
        units_of(SERVED, Host(Path(state), "u"))


def test_a_device_without_a_server_gets_no_units(ask: Json, state: Path) -> None:
    ask("init", "--name", "a")
    assert ask("install-service", "--dry-run")[1]["error_code"] == "no-server"


def test_a_dry_run_prints_the_units_and_writes_nothing(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state.mkdir()
    save_config(SERVED, state)
    folder = tmp_path / "units"
    assert run(["install-service", "--dry-run", "--directory", str(folder)]) == 0
    printed = capsys.readouterr()
    for name in ("corefleet-agent.service", "corefleet-recycle.timer"):
        assert f"# {folder / name}" in printed.out
    assert not folder.exists()


def test_units_are_written_once_there_is_an_agent_to_start(
    ask: Json, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.mkdir()
    save_config(SERVED, state)
    folder = tmp_path / "units"
    monkeypatch.setattr(setup, "AGENT_MODULE", "clients.agent.absent")
    code, envelope = ask("install-service", "--directory", folder)
    assert (code, envelope["error_code"]) == (4, "agent-missing")
    assert not folder.exists()
    monkeypatch.setattr(setup, "AGENT_MODULE", "clients.agent")
    code, envelope = ask("install-service", "--directory", folder, "--user", "corefleet")
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(envelope["data"]["units"])
    assert "corefleet-recycle.timer" in envelope["data"]["commands"][1]
    assert "corefleet-recycle.service" not in envelope["data"]["commands"][1]


@pytest.mark.parametrize(
    ("flag", "value", "error"),
    [("--user", "a;b", "user-name"), ("--memory-max", "2G\nUser=root", "memory-max")],
)
def test_what_would_change_a_unit_is_refused(
    ask: Json, state: Path, flag: str, value: str, error: str
) -> None:
    state.mkdir()
    save_config(SERVED, state)
    assert ask("install-service", "--dry-run", flag, value)[1]["error_code"] == error


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    here = DeviceConfig(
        name="a", server="h:1", interpreters=Interpreters(bridge=str(tmp_path / "python"))
    )
    program = tmp_path / "flower-supernode"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = units_of(here, Host(tmp_path, "root", "1G"))
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    # An older systemd warns of keys that it does not know yet; nothing else may be wrong.
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert [line for line in told if "RestartSteps" not in line and "RestartMax" not in line] == []
