"""The server's image as its steps make it, but for torch; some minutes: `make test-install`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.docker.reading import ROOT, arguments, read, runs
from tests.docker.stub_wheels import unpack_torch
from tests.docker.test_compose import SERVER, seconds
from tests.flower_processes import free_port

SYSTEM = str(Path(getattr(sys, "_base_executable", sys.executable)))
FOUND = read(ROOT / "docker" / "server.Dockerfile")
LIMIT_S = 900.0
READY_S = 180.0
PACE = threading.Event()  # never set: waiting for it paces what asks again and again

pytestmark = [pytest.mark.install, pytest.mark.timeout(LIMIT_S)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the image's root, made by the image's own lines."""
    root = tmp_path_factory.mktemp("image")
    source, place = root / "src", root / "opt"
    (root / "bin").mkdir()
    source.mkdir()
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    subprocess.run([SYSTEM, "-m", "venv", place], check=True)
    (packages,) = place.glob("lib/python3*/site-packages")
    unpack_torch(packages, arguments(FOUND)["TORCH_VERSION"])
    (line,) = [each for each in runs(FOUND) if "/src[" in each]
    for before, after in (
        ("/opt/corefleet/server", place),
        ("/usr/local/bin", root / "bin"),
        ("/src", source),
    ):
        line = line.replace(before, str(after))
    given = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    extras = {"EXTRAS": arguments(FOUND)["EXTRAS"]}
    done = subprocess.run(
        ["sh", "-c", line],
        env={**given, **extras},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def surroundings(image: Path, folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(image / "opt" / "bin"), str(image / "bin"), os.defpath])
    own = {"PATH": path, "HOME": str(folder), "COREFLEET_SERVER": str(folder)}
    return {**own, "PYTHONDONTWRITEBYTECODE": "1"}


def entry(image: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["corefleet-entry", *words],
        env=surroundings(image, folder),
        executable=str(image / "bin" / "corefleet-entry"),
        capture_output=True,
        text=True,
        check=False,
        timeout=READY_S,
    )


def test_the_image_has_the_server_and_all_that_it_imports(image: Path, tmp_path: Path) -> None:
    python = image / "opt" / "bin" / "python"
    names = "server.control.cli.root, server.registry, server.metrics, psycopg, flwr"
    subprocess.run([python, "-c", f"import {names}"], cwd=tmp_path, check=True, timeout=READY_S)
    assert (image / "opt" / "bin" / "flower-superlink").is_file()


def test_it_serves_is_healthy_and_ends_within_the_time_that_compose_gives(
    image: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    ports = ("--port", str(free_port()), "--superlink-port", str(free_port()))
    made = entry(image, folder, "server", "init", *ports)
    assert made.returncode == 0, made.stderr
    assert entry(image, folder, "healthy").returncode == 1
    command = json.loads(next(each.rest for each in FOUND if each.word == "CMD"))
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(
            ["corefleet-entry", *command],
            executable=str(image / "bin" / "corefleet-entry"),
            env=surroundings(image, folder),
            stdout=log,
            stderr=log,
        ) as server,
    ):
        try:
            until = time.monotonic() + READY_S
            while entry(image, folder, "healthy").returncode:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                PACE.wait(0.5)
            server.send_signal(signal.SIGTERM)
            grace_s = seconds(SERVER["services"]["server"]["stop_grace_period"])
            assert server.wait(grace_s) == 0
        finally:
            server.kill()
