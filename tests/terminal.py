"""A terminal that types what stands in a page of the docs, and sees whether the page is right."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Line", "Terminal", "section", "shape", "surroundings", "transcript"]

COMMAND_TIMEOUT_S = 120.0
# What differs from run to run; longest first, so that a time is not taken for three numbers.
CHANGING = (
    (re.compile(r"(?<!\S)/\S+/"), "FOLDER/"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.\d]*(?:Z|[+-]\d\d:\d\d))?"), "TIME"),
    (re.compile(r"(?<![\w-])[0-9a-f]{12,64}(?![\w-])"), "HASH"),
    (re.compile(r"(?<![\w-])\d[\d.,]*(?![\w-])"), "NUMBER"),
)
BORDERS = "┏┡└├╇┗"
# These change nothing, so they may be repeated until the fleet has come to what the page shows.
LOOKS = frozenset({"list", "show", "why", "status"})


@dataclass(frozen=True)
class Line:
    """A command of a page and what the page says that it prints.

    Args:
        command: As it is typed, without the prompt.
        output: Lines; empty where the page shows none.
    """

    command: str
    output: tuple[str, ...] = ()

    @property
    def looks(self) -> bool:
        """Whether it only looks."""
        words = [word for word in shlex.split(self.command, comments=True) if "=" not in word]
        return words[0] == "fleet" and words[2] in LOOKS

    @property
    def refused(self) -> bool:
        """Whether the page says that it fails."""
        return any(line.startswith("error [") for line in self.output)


def section(page: Path, title: str) -> str:
    """Return what stands under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
    assert found is not None, f"{page} has no section {title!r}"
    return found[1]


def transcript(text: str) -> list[Line]:
    """Return the commands of all fenced blocks in which a prompt stands, in their order."""
    lines: list[Line] = []
    for block in re.findall(r"^```\n(\$ .*?)^```", text, re.M | re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                lines.append(Line(line[2:].partition("   #")[0].strip()))
            else:
                lines[-1] = Line(lines[-1].command, (*lines[-1].output, line))
    return lines


def shape(lines: Iterable[str]) -> Counter[str]:
    """Return what must be the same in every run: columns and words, not times and numbers."""
    kept = (line.strip() for line in lines)
    return Counter(_stable(line) for line in kept if line and line[0] not in BORDERS)


def _stable(line: str) -> str:
    if line[0] in "┃│":
        line = " | ".join(cell.strip() for cell in line.strip("┃│").split(line[0]))
    for pattern, word in CHANGING:
        line = pattern.sub(word, line)
    return re.sub(r"  +", " ", line)


@dataclass
class Terminal:
    """Types one command after the other.

    Args:
        folder: Where it stands.
        environment: Of every command; ``export`` adds to it.
        pause_s: Between two attempts of a command that only looks.
        said: What each command printed last, both streams.
    """

    folder: Path
    environment: dict[str, str]
    pause_s: float = 3.0
    said: list[Line] = field(default_factory=list)

    def type(self, line: Line, limit_s: float, beside: subprocess.Popen[str]) -> None:
        """Type a command and see that it does what its page says.

        Args:
            line: Of the page.
            limit_s: Longest time in which one that only looks is repeated.
            beside: What runs in the other terminal, and must go on.
        """
        until = time.monotonic() + limit_s
        while True:
            code, printed = self.run(line.command)
            missing = shape(line.output) - shape(printed.splitlines())
            right = not missing and (code != 0) == line.refused
            over = time.monotonic() > until or beside.poll() is not None
            if right or over or not line.looks:
                break
            # Waiting for an end that should not come is what paces the attempts.
            with contextlib.suppress(subprocess.TimeoutExpired):
                beside.wait(self.pause_s)
        self.said.append(Line(line.command, tuple(printed.splitlines())))
        assert right, f"$ {line.command}\nexit code {code}\n{printed}\nnot there: {sorted(missing)}"
        assert beside.poll() is None, f"what runs beside has ended: {beside.returncode}"

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; return its exit code and what it printed."""
        if command.startswith("export "):
            words = shlex.split(command, comments=True)[1:]
            self.environment |= dict(word.split("=", 1) for word in words)
            return 0, ""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        return done.returncode, done.stdout


def surroundings(programs: Path, added: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which programs are found by their bare names."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COREFLEET_")}
    path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    return {**ours, "PATH": path, **added}
