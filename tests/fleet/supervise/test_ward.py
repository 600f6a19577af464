from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from fleet.errors import InputError
from fleet.supervise.child import Child, Exit, is_same, ticks_of
from fleet.supervise.record import Program, read_run
from fleet.supervise.restarts import Backoff, Phase
from fleet.supervise.supervisor import Supervisor
from fleet.supervise.told import Told
from fleet.supervise.ward import Sight, Spec, Ward, World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
ROOT = Path(__file__).parents[3]
BACKOFF = Backoff(least_s=1.0, first_s=4.0, longest_s=30.0, steady_s=60.0)
STAYS = ("import time; time.sleep(60)",)
SPEC = Spec("supernode", [sys.executable, "-S", "-c", *STAYS], dict(os.environ), BACKOFF, 10.0)


@dataclass
class Given:
    """Clocks that stand still until a test moves them."""

    seconds: float = 1000.0
    now: datetime = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
    told: list[Told] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)

    def world(self) -> World:
        return World(lambda: self.seconds, lambda: self.now, lambda: 0.5)

    def pass_s(self, seconds: float) -> None:
        self.seconds += seconds
        self.now += timedelta(seconds=seconds)

    @property
    def events(self) -> list[str]:
        return [each.event for each in self.told]


@pytest.fixture
def given() -> Given:
    return Given()


@pytest.fixture
def wards(given: Given, tmp_path: Path) -> Iterator[list[Ward]]:
    made: list[Ward] = []
    yield made
    for ward in made:
        ward.kill()
        ward.reap()


def make(given: Given, wards: list[Ward], folder: Path, spec: Spec = SPEC) -> Ward:
    def hear(name: str, line: str) -> None:
        given.heard.append(f"{name} | {line}")

    wards.append(Ward(spec, folder, 2**16, given.world(), given.told.append, hear))
    return wards[-1]


def ended(ward: Ward) -> None:
    """Let it run to its end, and have the ward notice it."""
    child = ward.child
    assert child is not None
    handle = os.pidfd_open(child.pid)
    select.select([handle], [], [], 60)
    os.close(handle)
    ward.advance()


@dataclass
class Held:
    """A gate that opens after some looks, or fails."""

    looks: int
    failure: InputError | None = None

    def look(self, world: World) -> Sight:
        self.looks -= 1
        if self.failure is not None:
            return Sight(False, ("gate.failed", "never"), failure=self.failure)
        event = ("gate.open", "open") if self.looks == 0 else None
        return Sight(self.looks == 0, event, next_s=5.0)


def test_a_child_waits_for_its_gate_once(given: Given, wards: list[Ward], tmp_path: Path) -> None:
    ward = make(given, wards, tmp_path, replace(SPEC, gate=lambda: Held(2)))
    ward.advance()
    ward.advance()
    assert (ward.child, given.events, ward.next_s(given.seconds)) == (None, [], 5.0)
    given.pass_s(5.0)
    ward.advance()
    assert given.events == ["gate.open", "process.started"]
    assert ward.child is not None
    ward.child.kill()
    ended(ward)
    given.pass_s(60.0)
    ward.advance()
    assert given.events[2:] == ["process.ended", "process.started"]


def test_a_gate_that_will_never_open_is_the_end(
    given: Given, wards: list[Ward], tmp_path: Path
) -> None:
    error = InputError("x", "x")
    ward = make(given, wards, tmp_path, replace(SPEC, gate=lambda: Held(9, error)))
    ward.advance()
    given.pass_s(60.0)
    ward.advance()
    assert (ward.failure, ward.child, given.events) == (error, None, ["gate.failed"])


class Worn:
    def observe(self, world: World, is_up: bool) -> str:
        return "it is old" if is_up and world.clock() > 1500 else ""


def test_a_worn_child_is_recycled(given: Given, wards: list[Ward], tmp_path: Path) -> None:
    ward = make(given, wards, tmp_path, replace(SPEC, wear=Worn))
    ward.advance()
    given.pass_s(600.0)
    ward.advance()
    assert given.events == ["process.started", "process.recycled"]
    assert given.told[-1].text == "recycled: it is old"
    assert ward.course.phase is Phase.STOPPING
    ended(ward)
    assert given.events[2:] == ["process.started"]
    assert (ward.course.recycles, ward.course.restarts) == (1, 0)


def test_a_child_that_crashes_waits_and_says_why(
    given: Given, wards: list[Ward], tmp_path: Path
) -> None:
    code = "print('Exit Code: 305', flush=True); raise SystemExit(1)"
    spec = replace(SPEC, command=[sys.executable, "-S", "-c", code])
    ward = make(given, wards, tmp_path, spec)
    ward.advance()
    ended(ward)
    assert given.told[-1].text == "restarts in 2.5 s because exit code 305"
    assert given.told[-1].data == {"reason": "exit code 305", "delay_s": 2.5}
    assert given.heard == ["supernode | Exit Code: 305"]
    given.pass_s(2.4)
    ward.advance()
    assert ward.child is None
    given.pass_s(0.11)
    ward.advance()
    assert ward.child is not None


@pytest.mark.parametrize(
    ("code", "cause", "reason"),
    [
        ("pass", "", "it ended by itself (exit code 0)"),
        ("raise SystemExit(3)", "the key is gone", "exit code 3: the key is gone"),
    ],
)
def test_an_end_that_nobody_asked_for_is_told_with_its_cause(
    given: Given, wards: list[Ward], tmp_path: Path, code: str, cause: str, reason: str
) -> None:
    command = [sys.executable, "-S", "-c", code]
    spec = replace(SPEC, command=command, cause=lambda end, lines: cause)
    ward = make(given, wards, tmp_path, spec)
    ward.advance()
    ended(ward)
    assert given.told[-1].text == f"restarts in 2.5 s because {reason}"
    assert ward.record().reasons == (reason,)


def test_an_end_that_was_asked_for_has_no_cause_to_tell(
    given: Given, wards: list[Ward], tmp_path: Path
) -> None:
    code = (
        "import signal,sys,threading; signal.signal(15, lambda *_: sys.exit(0)); print(1, flush=1)"
    )
    command = [sys.executable, "-S", "-c", f"{code}; threading.Event().wait(60)"]
    ward = make(given, wards, tmp_path, replace(SPEC, command=command, cause=lambda *_: "bug"))
    ward.advance()
    assert ward.output is not None
    select.select([ward.output], [], [], 60)
    ward.stop()
    ended(ward)
    assert given.told[-1].text == "ended, exit code 0"


def test_an_end_that_a_restart_cannot_mend_is_not_retried(
    given: Given, wards: list[Ward], tmp_path: Path
) -> None:
    error = InputError("no-base", "no base")
    spec = replace(
        SPEC,
        command=[sys.executable, "-S", "-c", "raise SystemExit(4)"],
        final=lambda end, lines: error if end == Exit(4) else None,
    )
    ward = make(given, wards, tmp_path, spec)
    ward.advance()
    ended(ward)
    given.pass_s(3600)
    ward.advance()
    assert (ward.failure, ward.child) == (error, None)


def test_a_child_starts_with_default_signals_and_in_a_session_of_its_own(
    given: Given, wards: list[Ward], tmp_path: Path
) -> None:
    tells = "grep SigIgn /proc/self/status; cut -d' ' -f1,5,6 /proc/$$/stat"
    ward = make(given, wards, tmp_path, replace(SPEC, command=["/bin/sh", "-c", tells]))
    ward.advance()
    ended(ward)
    ignored, numbers = (line.removeprefix("supernode | ").split() for line in given.heard)
    # glibc's own signals, 32 and 33, are ignored by whatever posix_spawn has started.
    assert int(ignored[1], 16) & 0x7FFFFFFF == 0
    pid, group, session = numbers
    assert pid == group == session


def test_a_command_that_is_none_is_retried_with_a_delay(
    given: Given, wards: list[Ward], tmp_path: Path
) -> None:
    ward = make(given, wards, tmp_path, replace(SPEC, command=["/no/such/program"]))
    ward.advance()
    ended(ward)
    assert ward.course.restarts == 1
    assert not ward.course.may_start(given.seconds)


@dataclass
class Stuck(Child):
    """A child in a driver's hands: no signal ends it."""

    pid: int
    does: list[str]
    ticks: int = 1
    output: int = -1

    def kill(self) -> None:
        self.does.append(f"kill {self.pid}")

    def ended(self) -> Exit | None:
        self.does.append(f"ended {self.pid}")
        return None


def test_one_that_no_signal_ends_is_told_with_its_pid_and_stays_a_child(
    given: Given, tmp_path: Path
) -> None:
    ward = make(given, [], tmp_path)
    child = ward.child = Stuck(77, [])
    ward.kill()
    ward.reap(limit_s=0)
    assert child.does == ["kill 77", "ended 77"]
    assert (given.events, given.told[0].data) == (["process.stuck"], {"pid": 77})
    assert ward.record().pid == 77


def test_a_supervisor_kills_all_before_it_waits_for_one_and_says_who_is_left(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.supervise.supervisor.REAP_LIMIT_S", 0)
    program = Program("a run", "a status", "--state")
    does: list[str] = []
    world, tell = given.world(), given.told.append
    whole = Supervisor([], tmp_path, 2**16, program, world, tell, lambda name, line: None)
    whole._wards = [
        make(given, [], tmp_path, replace(SPEC, name=name)) for name in ("agent", "supernode")
    ]
    for pid, ward in enumerate(whole._wards, 77):
        ward.child = Stuck(pid, does)
    whole._end_everything()
    assert does == ["kill 77", "kill 78", "ended 77", "ended 78"]
    assert given.events == ["process.stuck", "process.stuck", "run.ended"]
    assert given.told[-1].text == "ended; still there: agent (pid 77), supernode (pid 78)"
    written = read_run(tmp_path)
    assert written is not None
    assert [each.pid for each in written.processes.values()] == [77, 78]


ADOPTS = """
import os, subprocess
from pathlib import Path
from fleet.supervise.child import adopt_orphans
adopt_orphans()
shell = subprocess.Popen(["sh", "-c", "sleep 60 >&- & echo $!"], stdout=subprocess.PIPE, text=True)
orphan = int(shell.communicate()[0])
print(Path(f"/proc/{orphan}/stat").read_text().split()[3] == str(os.getpid()))
os.kill(orphan, 9)
"""


def test_what_a_child_leaves_behind_becomes_ours_to_reap() -> None:
    command = [sys.executable, "-c", ADOPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_an_end_is_told_by_the_name_of_its_signal() -> None:
    assert Exit(-9).reason() == "signal SIGKILL"
    assert Exit(-99).reason() == "signal 99"
    assert Exit(3).reason() == "exit code 3"
    assert Exit(1).reason(305) == "exit code 305"


def test_a_process_is_known_by_pid_and_start() -> None:
    ticks = ticks_of(os.getpid())
    assert ticks is not None
    assert is_same(os.getpid(), ticks)
    assert not is_same(os.getpid(), ticks + 1)
    assert not is_same(2**22, ticks)
    assert not is_same(0, 0)
