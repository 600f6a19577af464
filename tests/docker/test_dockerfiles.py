"""No container engine is at hand, so what an engine would trip over is read out of the text."""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docker.reading import (
    EXACT,
    KNOWN,
    ROOT,
    Instruction,
    arguments,
    bases,
    copied,
    instructions,
    parses,
    read,
    runs,
    shell_of,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
every_device = pytest.mark.parametrize(
    "path", [path for path in FILES if path.name.startswith("device")], ids=lambda path: path.name
)


def test_a_wrong_file_would_be_seen() -> None:
    found = instructions("FROM python:latest AS a\nCOPY --from=a x y\nCOPY none there\nFROM a\n")
    assert bases(found) == ["python:latest"]
    assert not EXACT.match("python:latest")
    assert not EXACT.match("python:3")
    assert not EXACT.match("python")
    assert EXACT.match("python:3.12.11-slim-bookworm")
    assert copied(found) == ["none"]
    assert shell_of(Instruction("RUN", "--mount=type=bind,target=/src,rw if true")) == "if true"
    assert not parses("if true")


def test_both_kinds_of_device_and_the_server_have_an_image() -> None:
    names = ["device-jetson.Dockerfile", "device.Dockerfile", "server.Dockerfile"]
    assert [path.name for path in FILES] == names


@every_file
def test_every_instruction_is_known(path: Path) -> None:
    assert {each.word for each in read(path)} <= KNOWN


@every_file
def test_every_image_has_an_exact_tag(path: Path) -> None:
    images = bases(read(path))
    assert images
    for image in images:
        assert EXACT.match(image), image
        assert "latest" not in image


@every_file
def test_every_pinned_program_has_a_whole_version(path: Path) -> None:
    given = arguments(read(path))
    pinned = {name: value for name, value in given.items() if re.search("VERSION|PYTHON$", name)}
    assert pinned
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", value) for value in pinned.values()), pinned


@pytest.mark.parametrize("name", ["device.Dockerfile", "server.Dockerfile"])
def test_an_image_for_the_cpu_has_the_torch_that_is_tested(name: str) -> None:
    given = arguments(read(ROOT / "docker" / name))
    assert f"torch=={given['TORCH_VERSION']}\n" in (ROOT / "constraints.txt").read_text()


@every_file
def test_what_is_copied_is_in_the_repository(path: Path) -> None:
    assert [source for source in copied(read(path)) if not (ROOT / source).exists()] == []


@every_file
def test_every_command_parses(path: Path) -> None:
    assert runs(read(path))
    assert [line for line in runs(read(path)) if not parses(line)] == []


@every_file
def test_nothing_that_pip_or_apt_downloaded_stays_behind(path: Path) -> None:
    for line in runs(read(path)):
        assert "pip install" not in line or "--no-cache-dir" in line, line
        assert "apt-get install" not in line or "rm -rf /var/lib/apt/lists/*" in line, line


@every_device
def test_only_the_tested_script_installs_the_two_halves(path: Path) -> None:
    text = "\n".join(runs(read(path)))
    halves = re.findall(r"/src/scripts/install-device\.sh --extras (\w+)", text)
    assert sorted(halves) == ["agent", "bridge"]
    assert {f"device-{half}" for half in halves} <= set(PROJECT["optional-dependencies"])
    parts = [part for part in re.split("&&|\n", text) if "pip install" in part]
    assert not [part for part in parts if "corefleet" in part or "/src" in part]


@every_file
def test_it_ends_as_a_user_of_its_own_with_state_in_a_volume(path: Path) -> None:
    found = read(path)
    users = [each.rest for each in found if each.word == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    made = [line for line in runs(found) if "useradd" in line]
    assert any(line.split()[-1] == users[-1] for line in made)
    last = max(n for n, each in enumerate(found) if each.word == "RUN")
    assert [n for n, each in enumerate(found) if each.word == "USER"][-1] > last
    assert [each.rest for each in found if each.word == "VOLUME"] == ["/var/lib/corefleet"]


@every_device
def test_what_it_runs_is_a_command_of_the_product_below_a_real_init(path: Path) -> None:
    found = {each.word: each.rest for each in read(path)}
    start = json.loads(found["ENTRYPOINT"])
    assert start == ["tini", "--", "fleet-device"]
    assert start[-1] in PROJECT["scripts"]
    assert json.loads(found["CMD"]) == ["run", "--state", "/var/lib/corefleet"]
    assert any("tini" in line for line in runs(read(path)))
    health = json.loads(found["HEALTHCHECK"].partition("CMD")[2])
    # Its exit code must tell an agent that is gone; that of `status` does not.
    assert health[:5] == ["fleet-device", "doctor", "--only", "agent", "--strict"]


def test_the_build_context_holds_what_the_wheel_is_made_of_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    packages = {"fleet", "clients", "server", "simulations"}
    assert kept >= packages | {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    secret = ("runs", ".git", ".venv", "tests", "shared")
    assert not [s for s in secret for k in kept if fnmatch.fnmatch(s, k)]
    assert {name for name in kept if not (ROOT / name).exists()} <= {
        "dist/device-aarch64",
        "dist/device-x86_64",
    }
