"""Transcripts: the fleet moves to another base by one command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.control.cli.root import run
from server.control.reach import REGISTRY
from server.registry import Registry, open_registry
from server.service.folder import ServerFolder
from tests.server.control.rebasing import GROWN, NEW, OLD, OTHER, on_a_release
from tests.server.control.test_rebasing import done

Json = Callable[..., tuple[int, dict[str, Any]]]
LOOK_S = 0.02


@pytest.fixture
def moving(folder: ServerFolder) -> Iterator[Registry]:
    """The server's registry is one whose fleet can move."""
    place = folder.path / REGISTRY
    for end in ("", "-wal", "-shm"):
        place.with_name(place.name + end).unlink(missing_ok=True)
    with open_registry(place, clock=time.time) as registry:
        yield on_a_release(registry)


@pytest.fixture
def service(moving: Registry, folder: ServerFolder) -> Iterator[None]:
    """Somebody who carries out orders, as the service does."""
    ended = threading.Event()

    def serve() -> None:
        with open_registry(folder.path / REGISTRY, clock=time.time) as own:
            while not ended.is_set():
                done(own)
                ended.wait(LOOK_S)

    moving.observations.beat(pid=1, version="", started_at_s=time.time(), doing={})
    thread = threading.Thread(target=serve)
    thread.start()
    yield
    ended.set()
    thread.join(30)


@pytest.mark.usefixtures("service")
def test_the_command_waits_for_the_service_and_tells_what_it_made(
    ask: Json, read: Callable[..., str]
) -> None:
    code, told = ask("release", "rebase", NEW.digest)
    assert (code, told["error_code"]) == (4, "not-confirmed")
    assert told["message"].startswith(f"not confirmed: move the fleet to base {NEW.digest[:12]}…")
    text = read("release", "rebase", NEW.digest, "--dry-run")
    assert f"rebased from release 0 of base {OLD.digest[:12]}…; largest relative" in text
    assert "would touch 3 devices (ada, bob, cyd); releases 0, 1" in text
    code, told = ask("release", "rebase", NEW.digest.upper(), "--why", "frames", "--yes")
    assert code == 0
    assert (told["result"]["release"], told["result"]["promoted"]) == (1, True)
    text = read("release", "list")
    assert NEW.digest[:16] in text
    assert OLD.digest[:16] in text
    assert f"'from_base': '{OLD.digest}'" in read("release", "show", "1")
    text = read("release", "rebase", OTHER.digest, "--another-network", "--hold", "--yes")
    assert f"release 2 of base {OTHER.digest[:12]}… was made, not promoted" in text
    assert "Next: fleet release promote 2" in text
    code, told = ask("release", "rebase", OTHER.digest, "--another-network", "--yes")
    assert (code, told["error_code"]) == (4, "already-there")


@pytest.mark.usefixtures("service")
def test_another_method_is_told_with_the_policy_that_it_needs(read: Callable[..., str]) -> None:
    text = read("release", "rebase", GROWN.digest, "--dry-run")
    assert "new classes: stairs (which core does not learn: --method core+head)" in text
    text = read("release", "rebase", GROWN.digest, "--method", "core+head", "--yes")
    assert "(which" not in text
    assert "Next: fleet policy set method=core+head --yes; fleet device list" in text


def test_without_a_service_the_order_waits_and_the_command_does_not(
    ask: Json, read: Callable[..., str], moving: Registry
) -> None:
    text = read("release", "rebase", NEW.digest, "--yes")
    assert "ordered (order 1); WARNING: the service has not run yet, so the order waits" in text
    (order,) = moving.orders.waiting()
    assert order.args["base"] == NEW.digest
    code, told = ask("release", "rebase", NEW.digest, "--yes")
    assert (code, told["result"], told["next"]) == (0, None, "fleet server up")


def test_a_wait_that_is_too_long_ends_with_3_and_the_order_stands(
    ask: Json, moving: Registry
) -> None:
    moving.observations.beat(pid=1, version="", started_at_s=time.time(), doing={})
    code, told = ask("release", "rebase", NEW.digest, "--yes", "--timeout", "0.1")
    assert (code, told["error_code"]) == (3, "wait-timeout")
    assert len(moving.orders.waiting()) == 1


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["release", "rebase", "--help"]) == 0
    text = capsys.readouterr().out
    assert "fleet release rebase DIGEST --dry-run" in text
    assert "--another-network" in text
