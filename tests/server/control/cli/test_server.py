from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from clients.agent.keys import make_keys
from server.control.cli.root import root, run
from tests.flower_processes import free_port

Json = Callable[..., tuple[int, dict[str, Any]]]
GROUPS = ("server", "device", "audit", "operator", "policy", "release", "round")


@pytest.fixture
def ask(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Json:
    """Run a command on a server of the test's own; return its code and the JSON it printed."""
    monkeypatch.setenv("COREFLEET_SERVER", str(tmp_path / "server"))

    def ask(*words: object) -> tuple[int, dict[str, Any]]:
        code = run([*map(str, words), "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


def init(ask: Json) -> dict[str, Any]:
    code, told = ask(
        "server", "init", "--port", free_port(), "--superlink-port", free_port(), "--host", "a.b"
    )
    assert code == 0
    data: dict[str, Any] = told["data"]
    return data


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for name in GROUPS:
        group = root.get_command(click.Context(root), name)
        assert isinstance(group, click.Group)
        found += [(f"{name} {verb}", command) for verb, command in group.commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_example_in_the_help_is_a_command(name: str, command: click.Command) -> None:
    lines = [line for line in (command.epilog or "").splitlines() if line.startswith("fleet ")]
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert " ".join(words[1:3]) == name
        context = click.Context(command)
        command.make_parser(context).parse_args(args=words[3:])


def test_init_tells_the_address_and_what_is_next(
    ask: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = init(ask)
    assert data["address"].startswith("a.b:")
    assert Path(data["root_certificate"]).exists()
    assert run(["server", "init"]) == 0
    assert "Next: fleet server up" in capsys.readouterr().out


def test_what_needs_a_server_says_how_to_make_one(ask: Json) -> None:
    for words in (["server", "up"], ["server", "status"], ["device", "list"]):
        code, told = ask(*words)
        assert (code, told["error_code"]) == (4, "no-server")
        assert "fleet server init" in told["hint"]
    code, told = ask("server", "doctor")
    assert (code, told["data"]["result"]) == (1, "fail")
    assert ask("server", "start-run")[1]["error_code"] == "no-server"


def test_a_server_that_does_not_run_is_shown_and_refuses(
    ask: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    init(ask)
    code, told = ask("server", "status")
    assert code == 0
    assert (told["data"]["running"], told["data"]["healthy"], told["data"]["run"]) == (
        *(False, False),
        None,
    )
    assert run(["server", "status"]) == 0
    printed = capsys.readouterr().out
    assert "not by fleet server up" in printed
    assert "next         fleet server up" in printed
    assert told["data"]["next"] == "fleet server up"
    assert run(["server", "doctor"]) == 0
    assert "Start it: fleet server up" in capsys.readouterr().out
    # The registry knows the devices, whether the SuperLink runs or not.
    assert ask("device", "list")[1]["data"]["devices"] == []
    code, told = ask("device", "revoke", "a", "--yes")
    assert (code, told["error_code"]) == (4, "no-such-device")


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä", "x" * 65, "a/b", "..", "a\n"])
def test_a_name_that_no_device_can_have_is_refused(ask: Json, tmp_path: Path, name: str) -> None:
    init(ask)
    code, told = ask("device", "enroll", tmp_path / "none.pub", "--name", name)
    assert (code, told["error_code"]) == (4, "device-name")


def test_a_key_is_a_file_or_a_line(ask: Json, tmp_path: Path) -> None:
    init(ask)
    (tmp_path / "device").mkdir()
    line = make_keys(tmp_path / "device", "a")
    for key in (tmp_path / "device" / "node-key.pub", line):
        # The key is fine: only the server is away.
        code, told = ask("device", "enroll", key, "--name", "a")
        assert (code, told["error_code"]) == (2, "superlink-away")
        assert "fleet server up" in told["hint"]
    for key in (tmp_path / "none.pub", tmp_path / "device" / "node-key", "ecdsa-sha2-x AAAA"):
        code, told = ask("device", "enroll", key, "--name", "a")
        assert (code, told["error_code"]) == (4, "public-key")


def test_a_host_that_can_be_none_is_refused(ask: Json) -> None:
    assert ask("server", "init", "--host", "a b")[1]["error_code"] == "host-name"
    # Nothing half made is in the way.
    assert init(ask)["address"].startswith("a.b:")


def test_a_second_server_in_one_folder_is_refused(ask: Json, tmp_path: Path) -> None:
    from fleet.supervise.record import RunLock
    from server.service.processes import PROGRAM

    init(ask)
    lock = RunLock(tmp_path / "server", PROGRAM)
    code, told = ask("server", "up")
    lock.close()
    assert (code, told["error_code"]) == (1, "already-running")
    assert told["hint"].startswith("See: fleet server status")
