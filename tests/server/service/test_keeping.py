"""The keeper of the standing service: what it sees, what it does, what it remembers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fleet.errors import RoundError
from fleet.supervise.told import Told
from server.flower_control import UnreachableError
from server.service.folder import ServerFolder
from server.service.keeper import Keeper, Sight, read_standing
from server.service.keeping import BEGIN_S, LEAVE_S, SILENT_S, Do, Seen, judged

GONE = 2**22 + 1
"""No process has a number like that."""


@pytest.mark.parametrize(
    ("seen", "does"),
    [
        (Seen(), Do.start),
        (Seen("pending"), Do.leave),
        (Seen("running", age_s=BEGIN_S), Do.leave),
        (Seen("running", age_s=BEGIN_S + 1), Do.stop),
        (Seen("running", 1e6, silent_s=SILENT_S, alive=True), Do.leave),
        (Seen("running", 1e6, silent_s=SILENT_S + 1, alive=True), Do.stop),
        (Seen("running", 1e6, silent_s=0.0, alive=False), Do.stop),
        (Seen("finished:failed", 1e6, silent_s=0.0, alive=True), Do.leave),
        (Seen("finished:failed", 1e6, silent_s=0.0, alive=True, over_s=LEAVE_S), Do.start),
        (Seen("finished:stopped", 1e6, silent_s=0.0, alive=False), Do.start),
        (Seen("finished:failed", 5.0), Do.start),
    ],
)
def test_what_is_seen_decides(seen: Seen, does: Do) -> None:
    assert judged(seen)[0] is does
    assert bool(judged(seen)[1]) == (does is not Do.leave)


@dataclass
class Flower:
    """Stands in for SuperLink, registry and clocks."""

    seconds: float = 1000.0
    states: dict[str, str] = field(default_factory=dict)
    beat: tuple[float, float, int] | None = None
    away: bool = False
    refuses: bool = False
    stopped: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)

    def sight(self) -> Sight:
        return Sight(
            self.state,
            self.stop,
            self.start,
            lambda: self.beat,
            self.others,
            self.clock,
            self.clock,
        )

    def clock(self) -> float:
        return self.seconds

    def state(self, run: str) -> str:
        if self.away:
            raise UnreachableError("superlink-away", "the SuperLink does not answer", "")
        if run not in self.states:
            raise UnreachableError("superlink-refused", f"no run {run}", "")
        return self.states[run]

    def stop(self, run: str) -> None:
        self.stopped.append(run)
        self.states[run] = "finished:stopped"

    def start(self) -> str:
        if self.away:
            raise UnreachableError("superlink-silent", "flwr run did not end", "")
        if self.refuses:
            raise RoundError("run-refused", "no")
        run = str(len(self.states) + 1)
        self.states[run] = "running"
        return run

    def others(self) -> list[str]:
        return [run for run, state in self.states.items() if not state.startswith("finished")]

    def lives(self, pid: int | None = None) -> None:
        self.beat = self.seconds, self.seconds, pid or os.getpid()

    @property
    def events(self) -> list[str]:
        return [each.event for each in self.told]


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return ServerFolder(tmp_path)


def keeper_of(flower: Flower, folder: ServerFolder) -> Keeper:
    return Keeper(replace(flower.sight(), draw=lambda: 0.5), folder, flower.told.append)


def test_a_service_that_was_killed_is_started_again_once_its_run_is_over(
    folder: ServerFolder,
) -> None:
    flower = Flower()
    keeper = keeper_of(flower, folder)
    keeper.look()
    flower.seconds += 10
    flower.lives()
    keeper.look()
    keeper.look()
    assert flower.events == ["standing.started", "standing.lives"]
    flower.lives(GONE)
    keeper.look()
    assert (flower.stopped, flower.events[-1]) == (["1"], "standing.stopped")
    keeper.look()
    assert flower.events[-1] == "standing.ended"
    assert list(flower.states) == ["1"]  # not at once
    flower.seconds += 60
    keeper.look()
    assert flower.states == {"1": "finished:stopped", "2": "running"}
    found = read_standing(folder)
    assert found is not None
    assert found.run == "2"


def test_a_keeper_that_is_started_anew_goes_on_with_the_run_that_lives(
    folder: ServerFolder,
) -> None:
    flower = Flower()
    keeper_of(flower, folder).look()
    flower.seconds += 5
    flower.lives()
    keeper_of(flower, folder).look()
    assert flower.states == {"1": "running"}
    assert flower.events == ["standing.started", "standing.lives"]


def test_a_run_that_was_never_written_down_does_not_stay_beside_another(
    folder: ServerFolder,
) -> None:
    flower = Flower(states={"1": "pending"})
    keeper_of(flower, folder).look()
    assert flower.stopped == ["1"]
    assert flower.states == {"1": "finished:stopped", "2": "running"}


def test_an_earlier_services_heartbeat_is_no_sign_of_this_one(folder: ServerFolder) -> None:
    flower = Flower(beat=(999.0, 900.0, GONE))
    keeper = keeper_of(flower, folder)
    keeper.look()
    flower.seconds += BEGIN_S
    keeper.look()
    assert flower.stopped == []
    flower.seconds += 1
    keeper.look()
    assert flower.stopped == ["1"]


def test_while_the_superlink_is_away_nothing_is_started_and_it_is_told_once(
    folder: ServerFolder,
) -> None:
    flower = Flower()
    keeper = keeper_of(flower, folder)
    keeper.look()
    flower.away = True
    for _ in range(5):
        keeper.look()
    assert flower.events == ["standing.started", "standing.away"]
    flower.away = False
    flower.lives()
    keeper.look()
    assert flower.events[2:] == ["standing.lives"]


def test_a_start_that_is_refused_is_tried_again_ever_more_slowly(folder: ServerFolder) -> None:
    flower = Flower(refuses=True)
    keeper = keeper_of(flower, folder)
    for _ in range(600):
        keeper.look()
        flower.seconds += 1
    tries = flower.events.count("standing.refused")
    assert 15 <= tries <= 40
    flower.refuses = False
    for _ in range(60):
        keeper.look()
        flower.seconds += 1
    assert flower.states == {"1": "running"}
