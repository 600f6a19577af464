"""Transcripts: the bases of a server, and an order that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet.adapt.base import Base
from server.control import requests as r
from server.control.reach import REGISTRY
from server.registry import open_registry
from server.registry.orders import Verb
from server.service.folder import ServerFolder

Json = Callable[..., tuple[int, dict[str, Any]]]


def test_a_base_is_installed_listed_and_named_by_a_policy(
    ask: Json, read: Callable[..., str], tiny_base: Base, tiny_base_file: Path
) -> None:
    digest = tiny_base.digest
    code, told = ask("policy", "set", f"base={digest}", "--yes")
    assert (code, told["error_code"]) == (4, "base-not-installed")
    code, told = ask("policy", "set", f"base={tiny_base_file}", "--yes")
    assert "fleet base show FILE --format json" in told["hint"]
    text = read("base", "install", tiny_base_file)
    assert f"installed {digest}" in text
    # The fleet serves a release, so its way to another base is a rebase.
    assert f"Next: fleet release rebase {digest}\n" in text
    assert ask("policy", "set", f"base={digest}", "--yes")[0] == 0
    assert "Next" not in read("base", "install", tiny_base_file)
    assert digest in read("base", "list")
    assert ask("base", "list")[1]["bases"][-1]["used_by_policy"] is True


def test_a_file_that_cannot_be_a_base_is_refused_before_it_is_sent(
    ask: Json, tmp_path: Path
) -> None:
    empty, large = tmp_path / "empty", tmp_path / "large"
    empty.write_bytes(b"")
    with large.open("wb") as file:
        file.truncate(r.LARGEST_BASE + 1)
    for each in (empty, large):
        code, told = ask("base", "install", each)
        assert (code, told["error_code"]) == (4, "base-size")
    assert ask("base", "install", tmp_path / "none")[1]["error_code"] == "no-such-file"


def test_the_digest_of_a_base_is_whole_in_the_table(
    read: Callable[..., str], tiny_base: Base, tiny_base_file: Path
) -> None:
    assert f"digest {tiny_base.digest}\n" in read("base", "show", tiny_base_file)


def test_an_order_that_failed_is_told_by_every_command_about_rounds(
    ask: Json, read: Callable[..., str], folder: ServerFolder
) -> None:
    with open_registry(folder.path / REGISTRY, clock=time.time) as registry:
        order = registry.orders.place(Verb.start_round, {}, actor="anna")
        registry.orders.finish(order.id, error="too few", actor="service")
    code, told = ask("round", "wait", "--timeout", 60)
    assert (code, told["error_code"]) == (1, "order-failed")
    for words in (("round", "show"), ("round", "list")):
        assert "for the next round failed: too few" in read(*words)
