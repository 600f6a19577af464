"""What the commands about a device's own data do where there is no store, or no whole one."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from clients.agent.cli.own import check_confirmed, read_store, standing_of
from clients.agent.cli.root import run
from clients.agent.private.summary import standing
from clients.agent.store import Store, open_store
from clients.agent.store.store import FILE_NAME
from fleet.errors import InputError
from tests.clients.agent.cli.conftest import Json

NOUNS = ("personal", "statistics")


def counted(store: Store) -> int:
    return store.windows.bytes()


@pytest.fixture
def damaged(ask: Json, state: Path) -> Path:
    """A device whose store is no database."""
    ask("init", "--name", "a")
    (state / FILE_NAME).write_bytes(b"not a database at all" * 500)
    return state


def test_a_store_is_read_where_there_is_one_and_made_by_no_look(tmp_path: Path) -> None:
    assert read_store(tmp_path, counted) is None
    assert standing_of(tmp_path, standing, True) is None
    assert list(tmp_path.iterdir()) == []
    with open_store(tmp_path, clock=time.time):
        pass
    assert read_store(tmp_path, counted) == 0
    found = standing_of(tmp_path, standing, True)
    assert found == {"on": True, "served": None, "core": None, "problem": None}


@pytest.mark.parametrize("fails", [False, True])
def test_a_store_that_was_read_is_closed(tmp_path: Path, fails: bool) -> None:
    seen: list[Store] = []

    def look(store: Store) -> None:
        seen.append(store)
        if fails:
            raise InputError("refused", "no", "")

    with open_store(tmp_path, clock=time.time):
        pass
    if fails:
        with pytest.raises(InputError, match="no"):
            read_store(tmp_path, look)
    else:
        read_store(tmp_path, look)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        seen[0].windows.bytes()


def test_what_cannot_be_taken_back_is_done_once_it_was_confirmed() -> None:
    check_confirmed(True, "dropping it", "fleet-device it drop")
    with pytest.raises(InputError) as caught:
        check_confirmed(False, "dropping it", "fleet-device it drop")
    assert (caught.value.code, caught.value.message, caught.value.hint) == (
        "not-confirmed",
        "dropping it cannot be taken back, so it needs a confirmation",
        "fleet-device it drop --yes",
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("personal", "drop"), "dropping the private core"),
        (("statistics", "drop"), "dropping the statistics"),
        (("forget", "ada"), "forgetting 'ada'"),
    ],
)
def test_a_command_that_was_not_confirmed_says_how_and_opens_no_store(
    ask: Json, damaged: Path, words: tuple[str, ...], what: str
) -> None:
    before = (damaged / FILE_NAME).read_bytes()
    code, envelope = ask(*words)
    assert (code, envelope["error_code"]) == (4, "not-confirmed")
    assert envelope["message"] == f"{what} cannot be taken back, so it needs a confirmation"
    assert envelope["hint"] == f"fleet-device {' '.join(words)} --yes"
    assert (damaged / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("noun", "wanted", "nothing"),
    [
        ("personal", "on", {"served": None, "core": None, "problem": None}),
        ("statistics", "own", {"served": None, "kept": None, "judged": None, "problem": None}),
    ],
)
def test_a_device_without_a_store_has_nothing_of_its_own(
    ask: Json, state: Path, noun: str, wanted: str, nothing: dict[str, None]
) -> None:
    ask("init", "--name", "a")
    assert ask(noun, "on")[1]["data"] == {"changed": True, "on": True, **nothing}
    assert ask(noun, "show")[1]["data"] == {"on": True, **nothing}
    assert f"{wanted} = true" in (state / "device.toml").read_text()
    assert ask(noun, "off")[1]["data"] == {"changed": True, "on": False, **nothing}
    assert not (state / FILE_NAME).exists()


@pytest.mark.parametrize("noun", NOUNS)
def test_a_damaged_store_is_an_error_of_a_look_at_what_is_in_it(
    ask: Json, damaged: Path, noun: str
) -> None:
    code, envelope = ask(noun, "show")
    assert (code, envelope["error_code"]) == (1, "store-damaged")


def test_a_status_tells_of_a_damaged_store_in_its_own_row_alone(
    ask: Json, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, envelope = ask("status")
    data = envelope["data"]
    assert (code, data["personal"], data["statistics"]) == (0, None, None)
    assert list(data["store"]) == ["problem"]
    assert run(["status"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: rows[name].strip() for name in ("private core", "statistics", "drift")} == {
        "private core": "none yet",
        "statistics": "none yet",
        "drift": "nothing yet",
    }
    assert "is damaged" in rows["store"]


def test_a_status_has_its_rows_in_one_order_with_and_without_a_store(
    ask: Json, state: Path
) -> None:
    ask("init", "--name", "a")
    without = ask("status")[1]["data"]
    with open_store(state, clock=time.time):
        pass
    found = ask("status")[1]["data"]
    order = ["personal", "statistics", "pseudo_labels", "store", "last_decision"]
    assert list(found)[-5:] == list(without)[-5:] == order
    assert [without[name] for name in order[:4]] == [None] * 4
    assert [found[name]["on"] for name in order[:3]] == [False] * 3
