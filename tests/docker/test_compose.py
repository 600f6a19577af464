"""The rules of compose files that matter here, read without an engine."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml
from sqlalchemy.engine import make_url

from server.control.cli.root import root
from server.service import processes
from server.service.config import ServerConfig
from simulations.box.running import STOP_S
from simulations.box.wanted import LARGEST_BOX
from tests.docker.reading import EXACT, ROOT, arguments, read
from tests.test_docs import parse, shell_lines

FOLDER = ROOT / "docker"
FILES = sorted(FOLDER.glob("compose.*.yaml"))
TOP = {"services", "networks", "volumes", "configs", "secrets"}
# Of the specification, what is used here; another word is a misspelling until it is added.
SERVICE = {
    *("build", "cap_drop", "command", "configs", "depends_on", "environment", "healthcheck"),
    *("image", "logging", "networks", "ports", "read_only", "restart", "runtime", "secrets"),
    *("security_opt", "shm_size", "stop_grace_period", "tmpfs", "user", "volumes"),
}
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
STATE = "/var/lib/corefleet"

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def load(path: Path) -> dict[str, Any]:
    """Parse a file with the defaults of its variables."""
    text = path.read_text()
    bare = re.findall(r"\$(?!\{\w+:-)", re.sub(r"#.*", "", text))
    assert not bare, "a variable without a default"
    loaded: dict[str, Any] = yaml.safe_load(VARIABLE.sub(lambda found: found[2], text))
    return loaded


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)([sm])", text)
    assert found is not None, text
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


SERVER = load(FOLDER / "compose.server.yaml")
BOX = load(FOLDER / "compose.fleet.yaml")


def config() -> ServerConfig:
    return ServerConfig.model_validate(tomllib.loads((FOLDER / "server.toml").read_text()))


def problems(found: dict[str, Any]) -> list[str]:
    """Everything that Compose would refuse: unknown words, references to nothing."""
    told = [f"top: {word}" for word in found.keys() - TOP]
    for name, service in found["services"].items():
        told += [f"{name}: {word}" for word in service.keys() - SERVICE]
        told += [f"{name}: neither or both"] * (("image" in service) == ("build" in service))
        told += [f"{name}: {each}" for each in service.get("depends_on", ()) if each == name]
        for kind in ("networks", "secrets", "configs"):
            words = [e["source"] if isinstance(e, dict) else e for e in service.get(kind, ())]
            told += [f"{name}: no {kind} {e}" for e in words if e not in found.get(kind, {})]
        told += [
            f"{name}: no service {each}"
            for each in service.get("depends_on", ())
            if each not in found["services"]
        ]
        named = [each.split(":")[0] for each in service.get("volumes", ())]
        told += [
            f"{name}: no volume {each}"
            for each in named
            if each[0] not in "./" and each not in found.get("volumes", {})
        ]
    return told


def test_a_wrong_file_would_be_seen() -> None:
    service = {"image": "a:1.2", "port": ["1:1"], "networks": ["n"], "volumes": ["v:/v"]}
    found = problems({"version": "3", "services": {"a": {**service, "depends_on": ["b"]}}})
    assert len(found) == 5, found
    assert problems({"services": {"a": {}}}) == ["a: neither or both"]


@every_file
def test_every_word_is_known_and_every_name_leads_somewhere(path: Path) -> None:
    assert problems(load(path)) == []


@every_file
def test_every_service_has_what_a_closed_container_has(path: Path) -> None:
    for service in load(path)["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "/tmp" in service["tmpfs"]
        assert service["restart"] in ("unless-stopped", "no")
        assert seconds(service["stop_grace_period"]) >= 60


@every_file
def test_every_image_is_exact_and_every_build_is_of_a_file_with_these_arguments(path: Path) -> None:
    for service in load(path)["services"].values():
        if "image" in service:
            assert EXACT.match(service["image"])
            continue
        build = service["build"]
        assert (path.parent / build["context"]).resolve() == ROOT
        dockerfile = read(ROOT / build["dockerfile"])
        assert build.get("args", {}).keys() <= arguments(dockerfile).keys()


@every_file
def test_what_is_written_lies_in_a_volume_that_is_the_images(path: Path) -> None:
    for service in load(path)["services"].values():
        if "build" in service:
            places = [volume.split(":")[1] for volume in service["volumes"]]
            assert STATE in places
            words = read(ROOT / service["build"]["dockerfile"])
            assert STATE in [each.rest for each in words if each.word == "VOLUME"]


def test_of_the_server_only_the_front_is_published() -> None:
    ports = {name: service.get("ports", []) for name, service in SERVER["services"].items()}
    front = config().front
    assert ports == {"server": [f"{front.port}:{front.port}"], "registry": []}
    assert front.host == "0.0.0.0"
    assert not config().control.listen
    assert "ports" not in BOX["services"]["fleet"]


def test_the_registry_of_the_configuration_is_the_one_in_the_file() -> None:
    url = make_url(config().database)
    service = SERVER["services"][str(url.host)]
    assert url.get_backend_name() == "postgresql"
    assert not url.password
    assert service["environment"]["POSTGRES_USER"] == url.username
    assert service["environment"]["POSTGRES_DB"] == url.database
    assert service["networks"] == ["inside"]
    assert SERVER["networks"]["inside"] == {"internal": True}
    assert "inside" in SERVER["services"]["server"]["networks"]
    waits = SERVER["services"]["server"]["depends_on"]
    assert waits == {url.host: {"condition": "service_healthy"}}
    assert service["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]


def test_both_have_the_password_from_the_same_file_and_never_in_the_environment() -> None:
    ((secret, _),) = SERVER["secrets"].items()
    for service in SERVER["services"].values():
        assert service["secrets"] == [secret]
        files = {k: v for k, v in service["environment"].items() if "PASSWORD" in k}
        assert list(files.values()) == [f"/run/secrets/{secret}"]
        assert all(name.endswith("_FILE") for name in files)
    script = (ROOT / "scripts" / "serve-in-container.sh").read_text()
    assert next(k for k in SERVER["services"]["server"]["environment"] if "PASSWORD" in k) in script


def test_the_configuration_is_where_the_server_looks_for_it() -> None:
    (mounted,) = SERVER["services"]["server"]["configs"]
    assert mounted["target"] == f"{STATE}/server.toml"
    assert (FOLDER / SERVER["configs"][mounted["source"]]["file"]).resolve() == (
        FOLDER / "server.toml"
    )


def test_the_server_has_the_time_that_its_processes_may_take_to_end() -> None:
    grace = seconds(SERVER["services"]["server"]["stop_grace_period"])
    assert grace > sum(processes.STOP_S.values())


def test_every_line_of_the_page_names_a_file_a_service_and_a_command_that_exist() -> None:
    lines = [line for line in shell_lines(ROOT / "docs" / "operate.md") if "docker compose" in line]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line[line.index("docker compose") :])
        found = load(ROOT / words[words.index("-f") + 1])
        for verb in {"exec", "run"} & set(words):
            left = words[words.index(verb) + 1 :]
            service, *command = itertools.dropwhile(lambda word: word.startswith("-"), left)
            assert service in found["services"], line
            # The image's entry is the program; whatever is executed beside it names its own.
            inside = ["fleet", *command] if verb == "run" else command
            assert parse(shlex.join(inside), root), line


def test_the_box_runs_a_command_of_the_product_and_has_the_time_to_end() -> None:
    service = BOX["services"]["fleet"]
    command = service["command"]
    assert parse(" ".join(["fleet", *(word or "''" for word in command)]), root) == ["up"]
    devices = int(command[command.index("--devices") + 1])
    assert devices <= LARGEST_BOX
    assert seconds(service["stop_grace_period"]) > STOP_S * (devices + 1)
    folder = command[command.index("--folder") + 1]
    assert service["environment"]["COREFLEET_SERVER"] == f"{STATE}/{folder}/server"
