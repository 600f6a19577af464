from __future__ import annotations

import inspect
import json
import signal
import socket
import sys
import uuid
from pathlib import Path

import pytest

from clients.agent.cli.root import run
from clients.agent.config import (
    AGENT_SOCKET,
    DeviceConfig,
    Interpreters,
    Run,
    parse_config,
    save_config,
)
from clients.agent.daemon import REST_S
from clients.agent.service import Host, units_of
from clients.agent.supervise.plan import SUPERNODE_STOP_S, specs_of
from clients.link.service import CLOSE_S
from fleet.errors import FleetError, InputError, UnavailableError
from fleet.supervise.child import Exit
from fleet.supervise.record import read_run
from tests.clients.agent.cli.conftest import Json
from tests.fleet.supervise.running import Running

STAND_IN = Path(inspect.getfile(Running)).with_name("stand_in.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def device(state: Path, agent: str = "stays", server: str = "h:1") -> DeviceConfig:
    """A device whose interpreters start stand-ins of agent and SuperNode."""
    journal = state / "journal"
    stand_in = f"exec {sys.executable} -S {STAND_IN}"
    python = script(state / "agent" / "python", f"{stand_in} agent {journal} {agent}")
    script(
        state / "bridge" / "flower-supernode",
        f'echo "$PATH $FLWR_HOME $1 $2" > {state}/seen; {stand_in} supernode {journal} stays',
    )
    pythons = Interpreters(agent=str(python), bridge=str(state / "bridge" / "python"))
    config = DeviceConfig(
        name="a", server=server, interpreters=pythons, run=Run(wait_for_clock_s=0)
    )
    save_config(config, state)
    return config


def started(state: Path, *arguments: str) -> Running:
    words = ["run", "--state", str(state), "--format", "json", *arguments]
    return Running([sys.executable, "-m", "clients.agent.cli.root", *words], uuid.uuid4().hex)


def told(running: Running) -> bool:
    return any(line.startswith("agent | ") for line in running.errors)


@linux
def test_run_keeps_agent_and_supernode_running_until_sigterm(
    tmp_path: Path, ask: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    device(tmp_path)
    running = started(tmp_path)
    try:
        assert running.until("process.started", "agent")["pid"] > 0
        running.until("process.started", "supernode")
        # Both have come as far as the end of this test asks about.
        while not (tmp_path / "seen").exists() or read_run(tmp_path) is None or not told(running):
            assert running.process.poll() is None
        shown = ask("status", "--state", tmp_path)[1]["data"]["run"]
        assert shown["running"]
        assert run(["status", "--state", str(tmp_path)]) == 0
        assert f"agent {shown['processes']['agent']['pid']}, up " in capsys.readouterr().out
        assert running.end(signal.SIGTERM) == 0
        assert running.all_gone()
    finally:
        running.close()
    path, home, *flags = (tmp_path / "seen").read_text().split()
    assert path.split(":")[0] == str(tmp_path / "bridge")
    assert home == str(tmp_path / "flwr")
    assert flags == ["--superlink", "h:1"]
    assert told(running)
    assert run(["status", "--state", str(tmp_path)]) == 0
    assert "(SIGTERM)" in capsys.readouterr().out


@linux
def test_a_device_without_a_server_runs_its_agent_alone_and_says_so(tmp_path: Path) -> None:
    device(tmp_path, server="")
    running = started(tmp_path)
    try:
        assert "the agent runs alone" in running.until("server.none")["text"]
        running.until("process.started", "agent")
        assert running.end(signal.SIGINT) == 130
    finally:
        running.close()
    assert {each.get("process") for each in running.seen} <= {None, "agent"}


@linux
def test_an_error_of_the_agent_is_the_last_line_and_the_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device(tmp_path, agent="code-4")
    words = ["run", "--state", str(tmp_path), "--only", "agent"]
    assert run([*words, "--format", "json"]) == 4
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (last["status"], last["error_code"], last["exit_code"]) == ("error", "no-base", 4)
    assert run(words) == 4
    printed = capfd.readouterr()
    assert "error [no-base]: no base" in printed.err
    assert " agent: started, pid " in printed.out
    assert "agent | {" in printed.err


@pytest.mark.parametrize(
    ("absent", "hint"),
    [("agent/python", "interpreters.agent"), ("bridge/flower-supernode", "device-bridge")],
)
def test_a_program_that_is_missing_is_told_with_what_brings_it(
    tmp_path: Path, ask: Json, absent: str, hint: str
) -> None:
    device(tmp_path)
    (tmp_path / absent).unlink()
    code, envelope = ask("run", "--state", tmp_path)
    assert (code, envelope["error_code"]) == (4, "program-missing")
    assert str(tmp_path / absent) in envelope["message"]
    assert hint in envelope["hint"]


def test_a_supernode_alone_needs_a_server(tmp_path: Path, ask: Json) -> None:
    device(tmp_path, server="")
    code, envelope = ask("run", "--state", tmp_path, "--only", "supernode")
    assert (code, envelope["error_code"]) == (4, "no-server")
    assert ask("run", "--state", tmp_path / "none")[1]["error_code"] == "no-device"


def test_one_process_can_be_run_alone(tmp_path: Path) -> None:
    config = device(tmp_path)
    for only, names in (("agent", ["agent"]), ("supernode", ["supernode"]), ("", None)):
        found = [spec.name for spec in specs_of(config, tmp_path, only, {})]
        assert found == (names or ["agent", "supernode"])


def test_another_python_does_not_inherit_the_paths_of_ours(tmp_path: Path) -> None:
    config = device(tmp_path)
    ours = {"PYTHONPATH": "/x", "PYTHONHOME": "/y", "LANG": "C"}
    agent, supernode = specs_of(config, tmp_path, "", ours)
    for spec in (agent, supernode):
        assert not {"PYTHONPATH", "PYTHONHOME"} & set(spec.environment)
        assert (spec.environment["LANG"], spec.environment["PYTHONUNBUFFERED"]) == ("C", "1")
    assert supernode.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert supernode.environment["FLWR_LOG_LEVEL"] == "WARNING"
    told = specs_of(config, tmp_path, "supernode", {"FLWR_LOG_LEVEL": "INFO"})[0]
    assert told.environment["FLWR_LOG_LEVEL"] == "INFO"
    assert supernode.stop_s == SUPERNODE_STOP_S
    assert agent.stop_s > REST_S + CLOSE_S  # or a long step's checkpoint is killed
    assert (agent.wear, agent.gate, agent.recycled_on_hangup) == (None, None, False)
    assert None not in (supernode.wear, supernode.gate)
    assert supernode.recycled_on_hangup
    # A keyed node that restarts is refused for up to 60 s.
    assert supernode.backoff.longest_s >= 75
    never = config.model_copy(update={"run": Run(recycle_at="")})
    assert specs_of(never, tmp_path, "supernode", ours)[0].wear is None
    same = config.model_copy(update={"interpreters": Interpreters()})
    assert specs_of(same, tmp_path, "agent", ours)[0].environment["PYTHONPATH"] == "/x"


@pytest.mark.parametrize(
    ("status", "lines", "kind", "code", "hint"),
    [
        (
            4,
            ["noise", '{"code": "no-base", "detail": "d", "hint": "h"}'],
            InputError,
            "no-base",
            "h",
        ),
        (4, ["strange"], InputError, "agent-refused", "log/agent.log"),
        (4, [], InputError, "agent-refused", "doctor"),
        (1, ["x: No module named clients.agent.daemon"], UnavailableError, "extra-missing", "pip"),
        (1, ["E: No module named 'torch'"], UnavailableError, "extra-missing", "device's torch"),
        (1, ["ValueError: x"], None, "", ""),
        (0, [], None, "", ""),
        (-9, ["No module named x"], None, "", ""),
    ],
)
def test_ends_of_the_agent_that_a_restart_cannot_mend(
    tmp_path: Path,
    status: int,
    lines: list[str],
    kind: type[FleetError] | None,
    code: str,
    hint: str,
) -> None:
    [agent] = specs_of(device(tmp_path), tmp_path, "agent", {})
    error = agent.final(Exit(status), lines)
    assert (None if error is None else type(error)) is kind
    if error is not None:
        assert error.code == code
        assert hint in error.hint


def test_the_timer_of_systemd_keeps_the_hour_of_the_config(tmp_path: Path) -> None:
    config, host = device(tmp_path), Host(Path("/s"), "u")
    early = config.model_copy(update={"run": Run(recycle_at="01:15")})
    assert "OnCalendar=*-*-* 01:15:00" in units_of(early, host)["corefleet-recycle.timer"]
    never = config.model_copy(update={"run": Run(recycle_at="")})
    assert not [name for name in units_of(never, host) if "recycle" in name]


@pytest.mark.parametrize("at", ["24:00", "3:30", "03:60", "soon"])
def test_a_time_of_day_is_hours_and_minutes(at: str) -> None:
    with pytest.raises(InputError, match=r"run\.recycle-at"):
        parse_config(f'name = "a"\n[run]\nrecycle-at = "{at}"')


def test_the_doctor_asks_the_agents_socket(tmp_path: Path, ask: Json) -> None:
    device(tmp_path)

    def finding() -> tuple[str, str]:
        [found] = ask("doctor", "--state", tmp_path, "--only", "agent")[1]["data"]["findings"]
        return found["result"], found["detail"] + found["fix"]

    assert finding() == ("warn", "not running" + "Start it: fleet-device run, or its service.")
    path = tmp_path / AGENT_SOCKET
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert finding()[0] == "ok"
    result, text = finding()
    assert (result, "is left from one that was killed" in text) == ("warn", True)
    path.unlink()
    path.mkdir()
    assert finding()[0] == "warn"
