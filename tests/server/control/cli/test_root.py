from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any

import click
import pytest

from fleet.errors import FleetError, StorageError
from fleet.federate.releases import Release, load_release
from fleet.federate.served import load_merged
from server.control.cli import root as cli
from server.control.cli.root import run
from server.store import RunFolder
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.simulations.tiny_fleet import MakeConfig

Json = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Json:
    """Run a command with ``--format json``; return its code and the one document it printed."""

    def ask(*arguments: object) -> tuple[int, dict[str, Any]]:
        code = run([*map(str, arguments), "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture(scope="module")
def method_folder(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = make_config(out=str(out))
    simulate(open_run(Run(config, ("core",), {}), resume=False), Silent())
    return out / "core"


@pytest.fixture(scope="module")
def last(method_folder: Path) -> Release:
    return load_release(method_folder / "releases" / "000002.safetensors")


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"fleet, version {version('corefleet')}"


def test_help_lists_every_group_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(cli._commands()) <= set(cli.SUMMARIES)
    for name in cli._commands():
        assert f"  {name}" in text
        assert cli.SUMMARIES[name].split(".")[0][:40] in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["simulate", "--nonsense"], "--nonsense"),
        (["release", "nonsense"], "nonsense"),
        (["release", "show"], "RELEASE"),
        (["simulate", "--rounds", "many"], "many"),
        (["simulate", "--format", "xml"], "xml"),
    ],
)
def test_a_wrong_command_line_exits_4_and_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run(arguments) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error [usage]" in printed.err
    assert told in printed.err


def test_a_usage_error_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    run(["release", "show"])
    assert "fleet release show --help" in capsys.readouterr().err


def test_an_error_in_json_is_one_envelope_with_the_exit_code(ask: Json) -> None:
    code, envelope = ask("simulate", "--nonsense")
    assert code == 4
    assert envelope["schema_version"] == "1"
    assert (envelope["status"], envelope["error_code"], envelope["exit_code"]) == (
        "error",
        "usage",
        4,
    )
    assert "--nonsense" in envelope["message"]


@pytest.mark.parametrize("spelling", [["--format=json"], ["--format", "json"]])
def test_the_form_is_known_even_if_the_rest_of_the_line_is_wrong(
    capsys: pytest.CaptureFixture[str], spelling: list[str]
) -> None:
    assert run(["nonsense", *spelling]) == 4
    assert json.loads(capsys.readouterr().out)["status"] == "error"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    @click.option("--format")
    def command(format: str) -> None:
        raise error

    class Point:
        name, value = "break", "simulations.x:app"

        def load(self) -> click.Command:
            return command

    monkeypatch.setattr(cli, "_commands", lambda: {"break": Point()})
    monkeypatch.setattr(cli.typer.main, "get_command", lambda loaded: loaded)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FleetError("x", "it failed", ""), 1),
        (StorageError("disk-full", "no space", ""), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (BrokenPipeError(), 5),
        (ZeroDivisionError(), 5),
    ],
)
def test_every_way_to_end_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    failing(monkeypatch, error)
    assert run(["break"]) == code


def test_a_reader_that_has_gone_away_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, BrokenPipeError())
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    assert run(["break"]) == 1
    assert capsys.readouterr().err == ""


def test_a_bug_shows_its_traceback_and_one_envelope(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ZeroDivisionError("really"))
    assert run(["break", "--format", "json"]) == 5
    printed = capsys.readouterr()
    assert "ZeroDivisionError: really" in printed.err
    assert json.loads(printed.out)["error_code"] == "bug"


def test_a_group_whose_extra_is_absent_says_which_one(
    monkeypatch: pytest.MonkeyPatch, ask: Json
) -> None:
    absent = EntryPoint("simulate", "simulations.not_there:app", "corefleet.commands")
    monkeypatch.setattr(cli, "_commands", lambda: {"simulate": absent})
    code, envelope = ask("simulate")
    assert (code, envelope["error_code"]) == (4, "extra-missing")
    assert "corefleet[sim]" in envelope["hint"]


def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if hasattr(command, "list_commands"):
            yield from commands(command, (*path, name))  # type: ignore[arg-type]


ALL = dict(commands(cli.root, ()))
EXAMPLES = [
    (name, line.strip())
    for name, command in ALL.items()
    for line in (command.epilog or "").replace("Next: ", "").splitlines()
    if "fleet " in line
]


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_has_help_and_an_example_or_members(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run([*name.split(), "--help"]) == 0
    assert "Usage: " in capsys.readouterr().out
    assert ALL[name].help
    assert hasattr(ALL[name], "list_commands") or "fleet " in (ALL[name].epilog or "")


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_in_a_help_text_is_a_command_that_parses(name: str, line: str) -> None:
    words = shlex.split(line[line.index("fleet ") :])[1:]
    if "--help" in words:
        assert " ".join(words[: words.index("--help")]) in ALL
        return
    length = max(n for n in range(1, len(words) + 1) if " ".join(words[:n]) in ALL)
    command = ALL[" ".join(words[:length])]
    parsed = command.make_context("fleet", words[length:])
    assert parsed.params


def test_a_list_shows_every_release_and_that_they_are_chained(
    ask: Json, method_folder: Path, last: Release
) -> None:
    code, envelope = ask("release", "list", method_folder)
    releases = envelope["data"]["releases"]
    assert code == 0
    assert [release["number"] for release in releases] == [1, 2]
    assert releases[-1]["digest"] == last.digest
    assert releases[1]["parent"] == releases[0]["digest"]
    assert [release["chained"] for release in releases] == [True, True]


@pytest.mark.parametrize("name", ["releases/000002.safetensors", ".", "..", "../.."])
def test_a_release_is_shown_by_its_file_its_methods_its_runs_or_the_runs_folder(
    ask: Json, method_folder: Path, last: Release, name: str
) -> None:
    code, envelope = ask("release", "show", method_folder / name)
    assert (code, envelope["status"]) == (0, "ok")
    data = envelope["data"]
    assert (data["number"], data["digest"], data["method"]) == (2, last.digest, "core")
    assert data["entries"] == last.state.layout.size
    assert set(data["layers"]) == set(last.state.layout.names)
    assert len(data["provenance"]["devices"]) == 3


def test_the_digest_is_printed_alone(
    capsys: pytest.CaptureFixture[str], method_folder: Path, last: Release
) -> None:
    assert run(["release", "digest", str(method_folder)]) == 0
    assert capsys.readouterr().out.strip() == last.digest


def test_a_diff_tells_how_far_each_layer_moved(ask: Json, method_folder: Path) -> None:
    one, two = (method_folder / "releases" / f"{n:06d}.safetensors" for n in (1, 2))
    code, envelope = ask("release", "diff", one, two)
    data = envelope["data"]
    moved = load_release(two).state - load_release(one).state
    assert code == 0
    assert data["same_base"] is True
    assert data["norm"] == pytest.approx(moved.norm)
    squares = sum(layer["norm"] ** 2 for layer in data["layers"].values())
    assert squares**0.5 == pytest.approx(moved.norm)
    _, same = ask("release", "diff", two, two)
    assert same["data"]["norm"] == 0


def test_a_merge_writes_the_model_that_the_run_wrote(
    ask: Json, method_folder: Path, last: Release, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    code, envelope = ask("release", "merge", method_folder, "--out", out)
    assert code == 0
    assert envelope["data"]["release"] == [2, last.digest]
    assert out.read_bytes() == (method_folder / "merged.safetensors").read_bytes()
    assert load_merged(out)[1].labels[0] == "walking"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["list", "EMPTY"], 4, "no-releases"),
        (["show", "EMPTY/none.safetensors"], 1, "bundle-missing"),
        (["show", "BASE"], 4, "bundle-format"),
        (["merge", "ALONE", "--out", "EMPTY/out.safetensors"], 1, "base-missing"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_code(
    ask: Json,
    method_folder: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    error: str,
) -> None:
    alone = tmp_path / "a" / "b" / "c" / "d" / "alone.safetensors"
    alone.parent.mkdir(parents=True)
    release = method_folder / "releases" / "000001.safetensors"
    alone.write_bytes(release.read_bytes())
    empty = tmp_path / "empty"
    empty.mkdir()
    names = {"EMPTY": str(empty), "BASE": str(method_folder.parent / "base.safetensors")}
    names["ALONE"] = str(alone)
    filled = [
        argument.replace(key, value) if key in argument else argument
        for argument in arguments
        for key, value in [next(((k, v) for k, v in names.items() if k in argument), ("\0", ""))]
    ]
    found, envelope = ask("release", *filled)
    assert (found, envelope["error_code"], envelope["exit_code"]) == (code, error, code)


def test_tables_of_every_release_command_can_be_drawn(
    capsys: pytest.CaptureFixture[str], method_folder: Path
) -> None:
    for command in (["list"], ["show"], ["diff", str(method_folder)]):
        assert run(["release", *command, str(method_folder)]) == 0
        assert capsys.readouterr().out.strip()
    assert RunFolder(method_folder).round_numbers() == [1, 2]


def test_the_version_imports_no_group() -> None:
    code = (
        "import sys; from server.control.cli.root import run; run(['--version']);"
        "sys.exit(bool({'torch', 'flwr', 'simulations', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
