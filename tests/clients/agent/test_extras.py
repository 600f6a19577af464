from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = {
    re.split(r"[=\s;]", line, maxsplit=1)[0].lower().replace("_", "-")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def pulled_in(lines: list[str]) -> set[str]:
    """Every distribution that requirements bring, as far as it is installed here."""
    seen: set[str] = set()
    left = [Requirement(line) for line in lines]
    while left:
        wanted = left.pop()
        name = wanted.name.lower().replace("_", "-")
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if name in seen:
            continue
        seen.add(name)
        try:
            left += [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
    return seen


@pytest.mark.parametrize("extra", ["device-agent", "device-bridge"])
def test_neither_extra_of_a_device_brings_torch(extra: str) -> None:
    brought = pulled_in([*PROJECT["dependencies"], *EXTRAS[extra]])
    assert {name for name in brought if "torch" in name or "nvidia" in name} == set()


def test_the_agents_extra_brings_no_flower_and_no_server() -> None:
    brought = pulled_in([*PROJECT["dependencies"], *EXTRAS["device-agent"]])
    assert brought & {"flwr", "fastapi", "sqlalchemy", "matplotlib"} == set()
    assert {"typer", "psutil", "cryptography", "grpcio", "protobuf", "pydantic"} <= brought


def test_what_an_agent_needs_is_bounded_and_pinned() -> None:
    for line in EXTRAS["device-agent"]:
        requirement = Requirement(line)
        operators = {each.operator for each in requirement.specifier}
        assert operators == {">=", "<"}, line
        assert requirement.name in PINNED, line


def test_the_entry_point_of_a_device_exists() -> None:
    module, _, name = PROJECT["scripts"]["fleet-device"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
