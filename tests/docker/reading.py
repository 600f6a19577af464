"""Dockerfiles read without an engine."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KNOWN = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN"),
    *("USER", "VOLUME", "WORKDIR"),
}
EXACT = re.compile(r"^[a-z0-9./_-]+:[A-Za-z0-9._-]*\d+\.\d+[A-Za-z0-9._-]*(@sha256:[0-9a-f]{64})?$")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word and all that follows, continued lines joined."""

    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        Instruction(*line.strip().split(None, 1)) for line in joined.splitlines() if line.strip()
    ]


def read(path: Path) -> list[Instruction]:
    return instructions(path.read_text())


def arguments(found: list[Instruction]) -> dict[str, str]:
    """The build arguments of a file with their defaults."""
    pairs = (each.rest.partition("=") for each in found if each.word == "ARG")
    return {name: default.strip('"') for name, _, default in pairs}


def bases(found: list[Instruction]) -> list[str]:
    """The images that a file starts from, its own stages left out, defaults put in."""
    stages, images = set(), []
    for each in found:
        if each.word != "FROM":
            continue
        words = each.rest.split()
        image = re.sub(r"\$\{(\w+)\}", lambda m: arguments(found)[m[1]], words[0])
        if image not in stages:
            images.append(image)
        if len(words) == 3:
            stages.add(words[2])
    return images


def copied(found: list[Instruction]) -> list[str]:
    """What is copied from the build context."""
    lines = [each.rest.split() for each in found if each.word == "COPY"]
    return [
        source
        for line in lines
        if not any(word.startswith("--from=") for word in line)
        for source in [word for word in line if not word.startswith("--")][:-1]
    ]


def shell_of(each: Instruction) -> str:
    return re.sub(r"^(--\w+(=\S+)?\s+)+", "", each.rest)


def runs(found: list[Instruction]) -> list[str]:
    return [shell_of(each) for each in found if each.word == "RUN"]


def parses(shell: str) -> bool:
    return subprocess.run(["bash", "-n"], input=shell, text=True, check=False).returncode == 0
