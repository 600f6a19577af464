from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer

from clients.agent.cli import render
from clients.agent.cli import root as cli
from clients.agent.cli.root import COMMANDS, Verb, run
from fleet.errors import FleetError, StorageError
from server.control.cli import render as operators
from tests.clients.agent.cli.conftest import Json

ROOT = Path(__file__).parents[4]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if hasattr(command, "list_commands"):
            yield from commands(command, (*path, name))  # type: ignore[arg-type]


ALL = dict(commands(cli.root, ()))
OWN = ("doctor", "enroll", "init", "install-service", "run", "status", "trust")
EXAMPLES = [
    (name, line.strip())
    for name, command in ALL.items()
    for line in (command.epilog or "").replace("Next: ", "").splitlines()
    if "fleet-device " in line
]
DOCUMENTED = [
    pytest.param(line, id=f"{page.name}: {line}"[:70])
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("fleet-device ")
]


def parsed(words: list[str]) -> click.Context:
    length = max(n for n in range(1, len(words) + 1) if " ".join(words[:n]) in ALL)
    return ALL[" ".join(words[:length])].make_context("fleet-device", words[length:])


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"fleet-device, version {version('corefleet')}"


def test_help_lists_every_verb_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name, verb in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.summary)}$", text, flags=re.MULTILINE)


def test_the_mapping_names_the_verbs_of_a_device() -> None:
    others = ["base", "drift", "ingest", "label", "forget", "infer", "personal", "statistics"]
    assert sorted(COMMANDS) == sorted([*OWN, *others, "release", "export"])
    assert set(OWN) <= set(ALL)


@pytest.mark.parametrize("name", OWN)
def test_every_verb_of_ours_has_help_and_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: " in text
    assert "--format" in text
    assert any(
        example.startswith(f"fleet-device {name}") for own, example in EXAMPLES if own == name
    )


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_in_a_help_text_is_a_command_that_parses(name: str, line: str) -> None:
    words = shlex.split(line[line.index("fleet-device ") :])[1:]
    words = words[: words.index("|")] if "|" in words else words
    assert parsed(words).params


@pytest.mark.parametrize("line", DOCUMENTED)
def test_every_command_of_a_device_in_the_docs_parses(line: str) -> None:
    words = shlex.split(line.partition("#")[0])[1:]
    assert parsed(words).params


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["status", "--nonsense"], "--nonsense"),
        (["init"], "--name"),
        (["status", "--format", "xml"], "xml"),
    ],
)
def test_a_wrong_command_line_exits_4_and_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run(arguments) == 4
    assert told in capsys.readouterr().err


def test_an_error_in_json_is_one_envelope_with_the_exit_code(ask: Json) -> None:
    code, envelope = ask("status", "--nonsense")
    assert code == 4
    assert (envelope["schema_version"], envelope["status"]) == ("1", "error")
    assert (envelope["error_code"], envelope["exit_code"]) == ("usage", 4)
    assert "--nonsense" in envelope["message"]


@pytest.mark.parametrize("spelling", [["--format=json"], ["--format", "json"]])
def test_the_form_is_known_even_if_the_rest_of_the_line_is_wrong(
    capsys: pytest.CaptureFixture[str], spelling: list[str]
) -> None:
    assert run(["nonsense", *spelling]) == 4
    assert json.loads(capsys.readouterr().out)["status"] == "error"


def test_errors_and_results_have_the_form_of_the_operators_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = FleetError("x", "it failed", "try again")
    printed = []
    for module in (render, operators):
        module.emit({"a": 1}, module.Format.json)  # type: ignore[attr-defined]
        for form in module.Format:  # type: ignore[attr-defined]
            module.emit_error(error, form)  # type: ignore[attr-defined]
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FleetError("x", "it failed", ""), 1),
        (StorageError("disk-full", "no space", ""), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (BrokenPipeError(), 5),
        (ZeroDivisionError("really"), 5),
    ],
)
def test_every_way_to_end_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    @click.command()
    @click.option("--format")
    def command(format: str) -> None:
        raise error

    monkeypatch.setattr(cli, "_command_of", lambda target: command)
    assert run(["status"]) == code
    assert run(["status", "--format", "json"]) == code
    printed = capsys.readouterr()
    assert code != 5 or str(error) in printed.err


@pytest.mark.parametrize(
    ("module", "missing", "hint"),
    [
        ("clients.agent.cli.absent", "clients.agent.cli.absent", "upgrade corefleet"),
        ("absent_package", "absent_package", "corefleet[device-agent]"),
    ],
)
def test_a_verb_whose_module_is_absent_says_which_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, ask: Json, module: str, missing: str, hint: str
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"infer": Verb(f"{module}:infer", "x")})
    code, envelope = ask("infer")
    assert (code, envelope["error_code"]) == (4, "extra-missing")
    assert missing in envelope["message"]
    assert hint in envelope["hint"]


def test_a_missing_torch_points_at_the_interpreter() -> None:
    error = cli._unavailable("infer", ModuleNotFoundError("no torch", name="torch"))
    assert "device's torch" in error.hint


def test_a_target_may_be_a_function_an_app_or_a_command() -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def inner() -> None:
        """Do."""

    @click.command()
    def plain() -> None:
        """Do."""

    for target in (inner, app, plain):
        assert isinstance(cli._command_of(target), click.Command)
    with pytest.raises(TypeError):
        cli._command_of(7)


def loaded_by(code: str) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


HEAVY = {"torch", "flwr", "grpc", "server", "simulations", "matplotlib", "scipy", "ray"}


def test_help_and_version_import_no_verb_and_nothing_heavy() -> None:
    run_it = "from clients.agent.cli.root import run"
    loaded = loaded_by(f"{run_it}; run(['--help']); run(['--version'])")
    assert loaded & (HEAVY | {"pydantic", "numpy", "cryptography", "psutil"}) == set()


def test_what_runs_beside_the_model_loads_no_torch_and_no_flower() -> None:
    own = [
        *("config", "policy", "decisions", "bounded", "keys", "service", "power"),
        *("power.jetson", "power.linux", "power.portable", "power.commands", "doctor"),
        *("doctor.model_trial", "doctor.torch_op", "cli.root", "cli.setup", "cli.health"),
        *("doctor.running", "cli.run", "supervise.plan"),
    ]
    loaded = loaded_by("import " + ", ".join(f"clients.agent.{name}" for name in own))
    assert "pydantic" in loaded
    assert loaded & HEAVY == set()


def test_torch_is_named_by_the_doctors_trial_alone() -> None:
    agent = ROOT / "clients" / "agent"
    own = [
        path for folder in ("power", "doctor", "supervise") for path in agent.glob(f"{folder}/*.py")
    ]
    own += [agent / f"{name}.py" for name in ("config", "policy", "decisions", "keys", "service")]
    own += [agent / "cli" / f"{name}.py" for name in ("root", "render", "setup", "health", "run")]
    importing = {
        path.name
        for path in own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.split(".")[0] in ("torch", "flwr")
    }
    assert importing == {"torch_op.py"}


def test_the_help_of_every_verb_and_a_status_load_no_torch(tmp_path: Path) -> None:
    lines = [f"run([*{name.split()!r}, '--help'])" for name in OWN]
    lines += [f"run(['init', '--name', 'a', '--state', {str(tmp_path / 's')!r}])"]
    lines += [f"run(['status', '--state', {str(tmp_path / 's')!r}])"]
    loaded = loaded_by("from clients.agent.cli.root import run\n" + "\n".join(lines))
    assert loaded & HEAVY == set()
