from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fleet.errors import Interrupted, RoundError
from simulations.cli.places import temporary_place


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made: no test leaves one behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def fail(error: BaseException) -> None:
    with temporary_place("fb-") as made:
        (made / "agent.log").write_text("why")
        raise error


def test_a_place_goes_with_all_that_is_in_it_when_its_command_is_over(top: Path) -> None:
    with temporary_place("fb-") as made:
        assert (made.parent, made.name[:3]) == (top, "fb-")
        (made / "logs").mkdir()
        (made / "logs" / "agent.log").write_text("all is well")
    assert list(top.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [RoundError("too-few", "too few devices answered", ""), ValueError("a bug"), OSError("full")],
    ids=["an error of ours", "a bug", "a system's"],
)
def test_a_place_stays_where_its_command_fails(top: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        fail(error)
    assert caught.value is error
    assert [made.name[:3] for made in top.iterdir()] == ["fb-"]
    assert [log.read_text() for log in top.glob("*/agent.log")] == ["why"]


@pytest.mark.parametrize(
    "ended",
    [
        Interrupted("interrupted", "interrupted before all rounds were over", ""),
        KeyboardInterrupt(),
        SystemExit(3),
        asyncio.CancelledError(),
    ],
    ids=lambda ended: type(ended).__name__,
)
def test_a_place_goes_when_somebody_ends_its_command(top: Path, ended: BaseException) -> None:
    with pytest.raises(type(ended)) as caught:
        fail(ended)
    assert caught.value is ended
    assert list(top.iterdir()) == []


def test_a_place_that_its_command_has_deleted_is_no_error(top: Path) -> None:
    with temporary_place("fb-") as made:
        made.rmdir()
    assert list(top.iterdir()) == []
