from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from clients.agent.cli.root import root as device_root
from fleet.config import RunConfig
from server.control.cli.root import root

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def shell_lines(page: Path) -> list[str]:
    text = page.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


COMMANDS = [
    pytest.param(line, id=f"{page.name}: {line}"[:70])
    for page in PAGES
    for line in shell_lines(page)
    if line.startswith("fleet ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_fleet_command_in_the_docs_exists_with_its_flags(line: str) -> None:
    parse(line, root)


def parse(line: str, command: click.Command) -> list[str]:
    """Parse a command line as its program does; return the program's verb."""
    program, *words = shlex.split(line)
    verb: list[str] = []
    context = click.Context(command, info_name=program)
    while isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no `{program} {words[0]}`"
        command, words, verb = found, words[1:], [*verb, words[0]]
        context = click.Context(command, parent=context, info_name=command.name)
    command.make_parser(context).parse_args(args=list(words))
    return verb


def test_every_command_of_the_runbook_exists_and_helps(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    spans = [" ".join(span.split()) for span in re.findall(r"`(fleet(?:-device)? [^`]+)`", text)]
    assert len(spans) > 40
    for program, command in (("fleet", root), ("fleet-device", device_root)):
        lines = {span for span in spans if span.split()[0] == program}
        verbs = {tuple(parse(line, command)) for line in lines}
        assert verbs
        for verb in sorted(verbs):
            shown = command.main([*verb, "--help"], prog_name=program, standalone_mode=False)
            assert not shown, verb
            assert "Usage" in capsys.readouterr().out, verb


def test_every_metric_that_the_runbook_names_is_in_the_operators_page() -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    named = set(re.findall(r"`(corefleet_\w+)", (ROOT / "docs" / "runbook.md").read_text()))
    assert named
    assert {name for name in named if f"| `{name}` |" not in page} == set()


def test_every_make_target_in_the_docs_exists() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", text, flags=re.MULTILINE))
    named = {
        word.split()[1]
        for page in PAGES
        for word in shell_lines(page)
        if re.match(r"make [a-z]", word)
    }
    assert named
    assert named <= targets


def test_every_key_of_the_run_configuration_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "run-config.md").read_text()
    for key, default in RunConfig().for_flower().items():
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        assert f"| `{key}` | `{shown}` |" in page, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_project_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(
        r"`((?:fleet|clients|server|simulations|tests|docs)/[\w./-]+\.\w+)`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
