"""``fleet-device trust`` and ``init --release-key``: a key is pinned and changed by hand alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from clients.agent.cli.root import run
from clients.agent.config import CONFIG_FILE, DeviceConfig, load_config, save_config
from clients.agent.pinned import COUNTED, RELEASE_KEY, pinned_keys
from clients.agent.store import open_store
from fleet.federate.signing import MAX_KEY_BYTES, MOST_KEYS, key_id, make_key, public_of
from tests.clients.agent.cli.conftest import Json

ONE, TWO = public_of(make_key()), public_of(make_key())
PAIRS = {"both.pub": ONE + TWO, "turned.pub": TWO + ONE}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return written(tmp_path / "one.pub", ONE)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pinned(state: Path) -> list[str]:
    return list(pinned_keys(load_config(state), state))


def test_init_pins_the_key_that_it_is_given_as_a_copy(ask: Json, state: Path, one: Path) -> None:
    code, envelope = ask("init", "--name", "a", "--release-key", one)
    assert (code, envelope["data"]["release_key"]) == (0, RELEASE_KEY)
    one.unlink()
    assert pinned(state) == [key_id(ONE)]
    assert (state / RELEASE_KEY).read_bytes() == ONE


def test_without_a_key_none_is_pinned_and_a_later_init_may(
    ask: Json, state: Path, one: Path
) -> None:
    ask("init", "--name", "a")
    assert pinned(state) == []
    assert ask("trust")[1]["data"] == {"name": "a", "keys": [], "file": None, "changed": False}
    assert ask("init", "--release-key", one)[0] == 0
    assert ask("init", "--release-key", one)[0] == 0
    assert pinned(state) == [key_id(ONE)]


def test_init_does_not_change_in_passing_whom_a_device_trusts(
    ask: Json, state: Path, one: Path, tmp_path: Path
) -> None:
    ask("init", "--name", "a", "--release-key", one)
    two = written(tmp_path / "two.pub", TWO)
    code, envelope = ask("init", "--release-key", two)
    assert (code, envelope["error_code"]) == (4, "release-key-pinned")
    assert pinned(state) == [key_id(ONE)]


def test_an_init_that_is_refused_changes_nothing(
    ask: Json, state: Path, one: Path, tmp_path: Path
) -> None:
    ask("init", "--name", "a", "--release-key", one)
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    two = written(tmp_path / "two.pub", TWO)
    arguments = ("--server", "evil:443", "--supernode-port", 9999, "--release-key", two)
    code, envelope = ask("init", *arguments)
    assert (code, envelope["error_code"]) == (4, "release-key-pinned")
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_init_writes_the_key_before_the_configuration_that_names_it(
    state: Path, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[str, bool]] = []

    def save(config: DeviceConfig, folder: Path) -> None:
        saved.append((config.release_key, (folder / RELEASE_KEY).is_file()))
        save_config(config, folder)

    for module in ("clients.agent.pinned", "clients.agent.cli.settled"):
        monkeypatch.setattr(f"{module}.save_config", save)
    assert run(["init", "--name", "a", "--release-key", str(one)]) == 0
    assert saved == [(RELEASE_KEY, True)]


def test_keys_are_the_same_in_any_order(ask: Json, state: Path, one: Path, tmp_path: Path) -> None:
    both, turned = (written(tmp_path / name, keys) for name, keys in PAIRS.items())
    ask("init", "--name", "a", "--release-key", both)
    assert ask("init", "--release-key", turned)[0] == 0
    code, envelope = ask("trust", turned)
    assert (code, envelope["data"]["changed"]) == (0, False)
    assert ask("trust", one)[1]["error_code"] == "not-confirmed"


def test_another_key_needs_a_confirmation(
    ask: Json, state: Path, one: Path, tmp_path: Path
) -> None:
    ask("init", "--name", "a")
    assert ask("trust", one)[1]["data"]["changed"] is True
    assert ask("trust", one)[1]["data"]["changed"] is False
    two = written(tmp_path / "two.pub", TWO)
    code, envelope = ask("trust", two)
    assert (code, envelope["error_code"]) == (4, "not-confirmed")
    assert key_id(ONE) in envelope["message"]
    assert pinned(state) == [key_id(ONE)]
    code, envelope = ask("trust", two, "--yes")
    assert (code, envelope["data"]["keys"]) == (0, [key_id(TWO)])
    assert pinned(state) == [key_id(TWO)]


def test_a_pinned_file_that_is_broken_is_put_right_by_hand(
    ask: Json, state: Path, one: Path
) -> None:
    ask("init", "--name", "a", "--release-key", one)
    (state / RELEASE_KEY).write_bytes(b"no key")
    assert ask("trust")[1]["error_code"] == "release-key"
    assert ask("trust", one)[1]["error_code"] == "not-confirmed"
    assert ask("trust", one, "--yes")[0] == 0
    assert pinned(state) == [key_id(ONE)]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "release-key"),
        (make_key(), "release-key"),
        (ONE * (MOST_KEYS + 1), "release-key"),
        (b"#" * (MAX_KEY_BYTES + 1), "release-key-missing"),
        (None, "release-key-missing"),
    ],
)
def test_what_is_no_public_key_is_not_pinned_and_makes_nothing(
    ask: Json, state: Path, tmp_path: Path, content: bytes | None, error: str
) -> None:
    path = tmp_path / "wrong.pub"
    if content is not None:
        path.write_bytes(content)
        code, envelope = ask("init", "--name", "a", "--release-key", path)
        assert (code, envelope["error_code"]) == (4, error)
        assert not state.exists()
    ask("init", "--name", "a")
    code, envelope = ask("trust", path)
    assert (code, envelope["error_code"]) == (4, error)
    assert not (state / RELEASE_KEY).exists()


def test_what_an_owner_decided_stays_when_a_key_is_pinned(
    ask: Json, state: Path, one: Path
) -> None:
    ask("init", "--name", "a")
    text = (state / CONFIG_FILE).read_text().replace("= 75.0", "= 60.0")
    (state / CONFIG_FILE).write_text(text)
    ask("trust", one)
    assert load_config(state).policy.max_temperature_c == 60.0


def test_the_status_says_by_whom_releases_are_taken_and_what_was_refused(
    ask: Json, state: Path, one: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("init", "--name", "a")
    assert ask("status")[1]["data"]["releases"] == {"keys": [], "problem": None, "unsigned": None}
    assert run(["status"]) == 0
    assert "none: releases are not verified" in capsys.readouterr().out
    ask("trust", one)
    with open_store(state, clock=time.time) as store:
        store.counters.add({f"{COUNTED}bad-signature": 2})
    assert ask("status")[1]["data"]["releases"]["keys"] == [key_id(ONE)]
    assert run(["status"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("release key"))
    assert line.split(maxsplit=2)[2] == f"{key_id(ONE)}; refused so far: bad-signature 2"
    (state / RELEASE_KEY).unlink()
    assert "cannot be read" in ask("status")[1]["data"]["releases"]["problem"]
    assert run(["status"]) == 0
    assert "no release is taken" in capsys.readouterr().out
    assert run(["trust", str(one), "--yes"]) == 0
    assert f"a takes releases signed by {key_id(ONE)}" in capsys.readouterr().out
