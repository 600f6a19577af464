from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fleet.errors import InputError, RoundError
from simulations.benchmarks.peft.workers import Workers
from simulations.progress import Silent

# This file loads no torch, so that its workers start quickly.
FOR_EVER = 60.0


class Pressing(Silent):
    """Presses Ctrl-C half a second after a stage has begun."""

    def stage(self, name: str, total: int, note: str = "") -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.5)


def nothing() -> None: ...


def double(item: int) -> str:
    return str(2 * item)


def end_itself(item: int) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def hang(item: float) -> str:
    threading.Event().wait(item)  # nobody sets it
    return ""


def refuse(item: int) -> str:
    raise InputError("no", f"not {item}", "another")


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int, note: str = "") -> None:
        self.notes.append(f"{name} {total} {note}")

    def advance(self, note: str = "") -> None:
        self.notes.append(note)


def test_every_item_is_done_once_and_told_of() -> None:
    notes = Notes()
    with Workers(2, nothing, ()) as workers:
        workers.run(notes, "one", double, range(10), 12)
        workers.run(notes, "two", double, [], 3)
    assert notes.notes[0] == "one 10 2 of 12 were done"
    assert sorted(map(int, notes.notes[1:-1])) == list(range(0, 20, 2))
    assert notes.notes[-1] == "two 0 3 of 3 were done"


def test_an_error_of_a_job_arrives_whole() -> None:
    with pytest.raises(InputError) as caught, Workers(1, nothing, ()) as workers:
        workers.run(Silent(), "one", refuse, [7], 1)
    assert (caught.value.code, caught.value.message, caught.value.hint) == (
        "no",
        "not 7",
        "another",
    )


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do() -> None:
    with (
        pytest.raises(RoundError, match="worker process") as caught,
        Workers(1, nothing, ()) as workers,
    ):
        workers.run(Silent(), "one", end_itself, [1, 2], 2)
    assert caught.value.code == "worker-died"
    assert "--workers" in caught.value.hint


def test_an_interrupt_does_not_wait_for_what_runs() -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), Workers(1, nothing, ()) as workers:
            workers.run(Pressing(), "one", hang, [FOR_EVER] * 3, 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < FOR_EVER / 2


SCRIPT = """
from simulations.benchmarks.peft.workers import Workers
from simulations.progress import Silent
from tests.simulations.test_peft_bench_workers import double, hang, nothing

if __name__ == "__main__":
    with Workers(2, nothing, ()) as workers:
        workers.run(Silent(), "one", double, [1, 2, 3, 4], 4)
        print("ready", flush=True)
        workers.run(Silent(), "two", hang, [60.0] * 4, 4)
"""


def ends(pid: int, seconds: float) -> bool:
    """Wait on the end of a process that is not our child; it may be gone already."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watched], [], [], seconds)[0])
    finally:
        os.close(watched)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="watches processes by pidfd and /proc"
)
def test_a_run_that_is_killed_leaves_no_worker_behind(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    found = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert found
    assert all(ends(int(pid), FOR_EVER / 2) for pid in found), "a worker outlived its parent"
