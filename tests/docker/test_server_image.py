"""The server's image, step by step, without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tomllib

from server.control.reach import registry_place
from server.service.config import load_config
from server.service.folder import ServerFolder
from server.service.setup import Wanted, made
from tests.docker.reading import ROOT, arguments, read, runs
from tests.server.service.test_setup import NOW

FOUND = read(ROOT / "docker" / "server.Dockerfile")
SCRIPT = ROOT / "scripts" / "serve-in-container.sh"
BY_WORD = {each.word: each.rest for each in FOUND}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
LIMIT_S = 60.0


def entry(
    folder: Path, *words: str, password: Path | None = None, fleet: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the entry; ``fleet`` is the text of a program in the place of ours."""
    programs = str(Path(sys.executable).parent)
    if fleet:
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "fleet").write_text(fleet)
        (folder / "bin" / "fleet").chmod(0o755)
        programs = str(folder / "bin")
    given = {"PATH": f"{programs}{os.pathsep}{os.defpath}", "TMPDIR": str(folder)}
    given |= {"COREFLEET_SERVER": str(folder / "server"), "HOME": str(folder)}
    given |= {"COREFLEET_REGISTRY_PASSWORD_FILE": str(password)} if password else {}
    return subprocess.run(
        ["/bin/sh", SCRIPT, *words],
        env=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


def test_the_extras_of_the_image_and_of_the_box_are_the_projects() -> None:
    box = re.search(r"EXTRAS=(\S+)", (ROOT / "docker" / "server.Dockerfile").read_text())
    assert box is not None
    for extras in (arguments(FOUND)["EXTRAS"], box[1]):
        assert set(extras.split(",")) <= set(EXTRAS)
    assert arguments(FOUND)["EXTRAS"] == "server,server-postgres"


def test_the_entry_of_the_image_is_the_script_that_is_tested_below_a_real_init() -> None:
    assert json.loads(BY_WORD["ENTRYPOINT"]) == ["tini", "--", "corefleet-entry"]
    installed = f"install -m 0755 /src/{SCRIPT.relative_to(ROOT)} /usr/local/bin/corefleet-entry"
    assert any(installed in line for line in runs(FOUND))
    assert any("tini" in line for line in runs(FOUND))
    assert json.loads(BY_WORD["CMD"]) == ["server", "up", "--format", "json"]
    assert json.loads(BY_WORD["HEALTHCHECK"].partition("CMD")[2]) == ["corefleet-entry", "healthy"]
    assert os.access(SCRIPT, os.X_OK)


def test_the_image_installs_what_is_pinned_into_the_environment_on_its_path() -> None:
    (install,) = [line for line in runs(FOUND) if "/src[" in line]
    assert "--constraint /src/constraints.txt" in install
    assert "/opt/corefleet/server/bin/python -m pip install" in install
    assert "PATH=/opt/corefleet/server/bin:" in BY_WORD["ENV"]
    assert "COREFLEET_SERVER=/var/lib/corefleet" in BY_WORD["ENV"]
    assert BY_WORD["WORKDIR"] == "/var/lib/corefleet"


def test_the_port_of_the_image_is_the_front_of_its_configuration(tmp_path: Path) -> None:
    folder = placed(tmp_path)
    assert BY_WORD["EXPOSE"] == str(load_config(folder).front.port)


def placed(tmp_path: Path) -> ServerFolder:
    """A folder with the configuration of the compose file, as it is mounted: read-only."""
    folder = ServerFolder(tmp_path / "server")
    folder.make()
    shutil.copyfile(ROOT / "docker" / "server.toml", folder.config)
    folder.config.chmod(0o444)
    return folder


def test_init_completes_a_folder_with_the_mounted_configuration_and_leaves_that(
    tmp_path: Path,
) -> None:
    folder = placed(tmp_path)
    before = folder.config.stat()
    config = made(folder, Wanted(), NOW)
    assert folder.config.stat().st_ino == before.st_ino  # what is mounted cannot be replaced
    assert config.front.host == "0.0.0.0"
    assert config.service.standing
    assert all(path.is_file() for path in folder.secrets)
    assert str(registry_place(folder)).startswith("postgresql://corefleet@registry/")


def test_the_entry_hands_its_words_to_the_command_and_its_exit_code_back(tmp_path: Path) -> None:
    done = entry(tmp_path, "server", "up", "two words", fleet='#!/bin/sh\necho "$3"; exit 7\n')
    assert (done.returncode, done.stdout) == (7, "two words\n")


def test_the_command_takes_the_entrys_place_so_that_signals_reach_it(tmp_path: Path) -> None:
    done = entry(tmp_path, "server", "up", fleet="#!/bin/sh\ncat /proc/$PPID/cmdline\n")
    assert done.returncode == 0
    assert SCRIPT.name not in done.stdout


@pytest.mark.parametrize("text", ["plain\n", "with:colon", "back\\slash:and %s\n"])
def test_the_password_is_in_libpqs_form_for_its_owner_alone(tmp_path: Path, text: str) -> None:
    from psycopg import pq

    secret = tmp_path / "registry-password"
    secret.write_text(text)
    show = '#!/bin/sh\nprintf "%s" "$PGPASSFILE"\n'
    done = entry(tmp_path, "server", "up", password=secret, fleet=show)
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout)
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    words = re.split(r"(?<!\\):", made.read_text().rstrip("\n"))
    assert words[:4] == ["*"] * 4
    assert re.sub(r"\\(.)", r"\1", ":".join(words[4:])) == text.rstrip("\n")
    # libpq reads it before it connects; there is nobody, and it does not wait for anybody.
    connection = pq.PGconn.connect_start(
        f"host={tmp_path} user=corefleet dbname=corefleet passfile={made}".encode()
    )
    assert connection.password == text.rstrip("\n").encode()
    connection.finish()


def test_a_password_that_cannot_be_read_is_said_with_the_next_step(tmp_path: Path) -> None:
    done = entry(tmp_path, "server", "up", password=tmp_path / "none", fleet="#!/bin/sh\n")
    assert done.returncode == 1
    assert "cannot be read" in done.stderr
    assert "hint:" in done.stderr


@pytest.mark.parametrize(("answers", "code"), [(True, 0), (False, 1)])
def test_the_health_check_asks_the_superlink_by_the_authority(
    tmp_path: Path, answers: bool, code: int
) -> None:
    folder = ServerFolder(tmp_path / "server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    made(folder, Wanted(superlink_port=port), NOW)
    with answering(folder, port) if answers else nullcontext():
        done = entry(tmp_path, "healthy")
    assert done.returncode == code, done.stderr
    assert ("not healthy" in done.stderr) is not answers


def test_a_folder_without_a_server_is_not_healthy(tmp_path: Path) -> None:
    done = entry(tmp_path, "healthy")
    assert done.returncode == 1
    assert "server.toml" in done.stderr


@contextmanager
def answering(folder: ServerFolder, port: int) -> Iterator[None]:
    """Something with the server's certificate that is healthy."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder.certificate, folder.key)
    with ThreadingHTTPServer(("127.0.0.1", port), Healthy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(LIMIT_S)


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return
