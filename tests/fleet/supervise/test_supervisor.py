from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import pytest

from fleet.errors import StorageError
from fleet.supervise.child import Child, Exit
from fleet.supervise.leftovers import end_leftovers
from fleet.supervise.record import (
    ProcessRecord,
    Program,
    RunLock,
    RunRecord,
    read_run,
    standing,
    standing_line,
    write_run,
)
from fleet.supervise.told import Told
from tests.fleet.supervise.running import LIMIT_S, Running, gone, supervised

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

PROGRAM = Program("a run", "a status", "--state")
NOW = datetime(2026, 11, 21, tzinfo=timezone.utc)


def journal(state: Path) -> list[str]:
    return (state / "journal").read_text().splitlines()


def record(state: Path) -> RunRecord:
    found = read_run(state)
    assert found is not None
    return found


def has_group(number: int) -> bool:
    """Tell whether a process group has members; zombies are some."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def settled(running: Running, state: Path, *lines: str) -> None:
    """Wait until the stand-ins have written these lines, in whatever order."""
    until = time.monotonic() + LIMIT_S
    wanted = Counter(lines)
    paced = threading.Event()
    while not (state / "journal").exists() or wanted - Counter(journal(state)):
        assert running.process.poll() is None, running.errors
        assert time.monotonic() < until, lines
        paced.wait(0.01)


def test_processes_that_end_start_again_and_sigterm_ends_the_supernode_first(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, "ends-1", "ends-2") as running:
        settled(running, tmp_path, *["agent up"] * 2, *["supernode up"] * 3)
        assert running.end(signal.SIGTERM) == 0
        assert running.all_gone()
    assert journal(tmp_path)[-4:] == [
        *("supernode term", "supernode over", "agent term", "agent over")
    ]
    ends = [each for each in running.seen if "delay_s" in each]
    assert {each["reason"] for each in ends} == {"exit code 305"}
    assert all(0.01 <= each["delay_s"] <= 0.05 for each in ends)
    last = record(tmp_path)
    assert [last.processes[name].restarts for name in ("agent", "supernode")] == [1, 2]
    assert last.ended is not None
    assert (last.why, last.processes["supernode"].pid) == ("SIGTERM", 0)
    assert "agent is up" in running.errors
    assert "supernode is up" in (tmp_path / "log" / "supernode.log").read_text()


def test_ctrl_c_ends_everything_with_the_code_that_shells_know(tmp_path: Path) -> None:
    with supervised(tmp_path, "stays", "stays") as running:
        settled(running, tmp_path, "agent up", "supernode up")
        assert running.end(signal.SIGINT) == 130
        assert running.all_gone()
    assert record(tmp_path).why == "SIGINT"


def test_what_ignores_sigterm_is_killed_after_its_limit_with_its_children(tmp_path: Path) -> None:
    with supervised(tmp_path, "stays", "stubborn parent", stop_s=0.2) as running:
        settled(running, tmp_path, "agent up", "supernode up")
        children = running.children
        assert running.end(signal.SIGTERM) == 0
        assert gone(children)
    assert len(children) == 3
    told = [each["process"] for each in running.seen if each["event"] == "process.killed"]
    assert told == ["supernode"]
    assert "agent over" in journal(tmp_path)


def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    with supervised(tmp_path, "stubborn", "stubborn", stop_s=3600) as running:
        settled(running, tmp_path, "agent up", "supernode up")
        running.process.send_signal(signal.SIGINT)
        running.until("run.stopping")
        assert running.end(signal.SIGINT) == 130
        assert running.all_gone()


def test_the_children_of_a_supernode_that_crashed_end_before_it_starts_again(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, "", "parent ends-3") as running:
        settled(running, tmp_path, *["supernode up"] * 4)
        # The stand-in and the child of its last life; those before it are gone, zombies included.
        assert len(running.children) == 2
        lives = [running.until("process.started")["pid"] for _ in range(4)]
        assert not any(map(has_group, lives[:-1]))
        assert running.end(signal.SIGTERM) == 0
        assert running.all_gone()


def test_sighup_recycles_the_supernode_alone_and_that_is_no_crash(tmp_path: Path) -> None:
    with supervised(tmp_path, "stays", "stays") as running:
        settled(running, tmp_path, "agent up", "supernode up")
        running.process.send_signal(signal.SIGHUP)
        settled(running, tmp_path, "agent up", *["supernode up"] * 2)
        assert running.end(signal.SIGTERM) == 0
    assert journal(tmp_path).count("agent up") == 1
    supernode = record(tmp_path).processes["supernode"]
    assert (supernode.restarts, supernode.recycles) == (0, 1)


def test_a_killed_supervisor_takes_its_processes_along_and_is_told_stale(tmp_path: Path) -> None:
    with supervised(tmp_path, "stays", "stays") as running:
        settled(running, tmp_path, "agent up", "supernode up")
        while running.until("process.started")["process"] != "supernode":
            pass
        children = running.children
        # Written just after the event.
        while read_run(tmp_path) is None or record(tmp_path).processes["supernode"].pid == 0:
            assert running.process.poll() is None
        alive = standing(tmp_path)
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
        assert gone(children)
    # Asked by the kernel, not by the end of their patience.
    assert {"agent term", "supernode term"} <= set(journal(tmp_path))
    assert alive is not None
    assert alive["running"]
    assert all(each["alive"] for each in alive["processes"].values())
    assert "agent " in standing_line(alive, PROGRAM)
    dead = standing(tmp_path)
    assert dead is not None
    assert (dead["running"], dead["stale"]) == (False, True)
    assert "was killed" in standing_line(dead, PROGRAM)


@pytest.mark.parametrize(
    ("up_s", "shown"),
    [
        (61.0, "agent 7, up 61 s, 1 restart (last: exit code 305)"),
        (5.0, "agent 7, up 5 s, 1 restart (last: exit code 305: the key is gone)"),
        (None, "agent is down, 1 restart (last: exit code 305: the key is gone)"),
    ],
)
def test_the_cause_of_an_end_is_told_until_the_process_has_recovered(
    up_s: float | None, shown: str
) -> None:
    reasons = ["exit code 305: the key is gone"]
    each = {"restarts": 1, "reasons": reasons, "alive": up_s is not None, "pid": 7, "up_s": up_s}
    assert standing_line({"processes": {"agent": each}, "running": True}, PROGRAM) == shown


def left_behind(state: Path, modes: str) -> tuple[Child, RunRecord]:
    """A stand-in as a killed supervisor leaves it, and what that had written down."""
    stand_in = str(Path(__file__).with_name("stand_in.py"))
    command = [sys.executable, "-S", stand_in, "agent", str(state / "journal"), *modes.split()]
    child = Child(command, os.environ)
    agent = ProcessRecord(phase="up", pid=child.pid, ticks=child.ticks, since=NOW)
    return child, RunRecord(pid=2**22, ticks=1, since=NOW, processes={"agent": agent})


def test_what_a_killed_supervisor_left_is_ended_before_another_starts(tmp_path: Path) -> None:
    child, before = left_behind(tmp_path, "stays")
    write_run(tmp_path, before)
    while not (tmp_path / "journal").exists():
        assert child.ended() is None
    left = standing(tmp_path)
    assert left is not None
    assert f"was killed and left agent {child.pid}, up " in standing_line(left, PROGRAM)
    with supervised(tmp_path, "stays") as running:
        assert running.until("leftover.ended")["process"] == "agent"
        assert child.ended() == Exit(0)
        settled(running, tmp_path, *["agent up"] * 2)
        assert running.end(signal.SIGTERM) == 0
    child.close()


def test_what_is_left_and_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    child, before = left_behind(tmp_path, "stubborn parent")
    while not (tmp_path / "journal").exists():
        assert child.ended() is None
    told: list[Told] = []
    end_leftovers(before, told.append, limit_s=0.05)
    assert [each.event for each in told] == ["leftover.ended"]
    assert child.ended() == Exit(-signal.SIGKILL)
    while child.read() != b"":  # the end of the file comes with the last that could write
        pass
    child.close()


def test_a_pid_that_is_anothers_by_now_is_left_alone(tmp_path: Path) -> None:
    child, before = left_behind(tmp_path, "stays")
    agent = before.processes["agent"]
    reused = agent.model_copy(update={"ticks": agent.ticks - 1})
    told: list[Told] = []
    end_leftovers(before.model_copy(update={"processes": {"agent": reused}}), told.append)
    end_leftovers(None, told.append)
    assert told == []
    assert child.ended() is None
    child.kill()
    while child.ended() is None:
        pass
    child.close()


def test_there_is_one_supervisor_of_a_state_directory(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, PROGRAM)
    with supervised(tmp_path, "stays") as running:
        assert running.until("error")["code"] == "already-running"
        assert running.end() == 1
    lock.close()
    lock.close()
    RunLock(tmp_path, PROGRAM).close()
    with pytest.raises(StorageError, match=r"cannot be opened"):
        RunLock(tmp_path / "none", PROGRAM)


def test_an_agent_with_a_bad_configuration_ends_the_run_with_its_error(tmp_path: Path) -> None:
    with supervised(tmp_path, "code-4", "stays") as running:
        assert running.until("error")["code"] == "no-base"
        assert running.end() == 4
        assert running.all_gone()
    assert journal(tmp_path).count("agent up") == 1
    assert record(tmp_path).why == "no-base"


def test_a_supervisor_outlives_the_reader_of_its_events(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with supervised(tmp_path, "ends-2 quiet", stdout=writing) as running:
        os.close(writing)
        settled(running, tmp_path, *["agent up"] * 3)
        assert running.end(signal.SIGTERM) == 0
        assert running.all_gone()


def test_a_record_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with supervised(tmp_path, "ends-2") as running:
        settled(running, tmp_path, *["agent up"] * 3)
        assert running.end(signal.SIGTERM) == 0
    assert [each["event"] for each in running.seen].count("run.unwritten") == 1
