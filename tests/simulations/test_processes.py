from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet.errors import RoundError
from simulations import processes
from simulations.processes import Command, execute

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
TOO_LATE_S = 30


def test_a_command_is_measured_with_what_it_starts_and_nothing_is_left(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = f"import time,pathlib;b=bytes(range(256))*200000;pathlib.Path({str(ready)!r}).touch()"
    child += ";time.sleep(600)"
    parent = (
        "import subprocess,sys,time,pathlib\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        f"while not pathlib.Path({str(ready)!r}).exists(): time.sleep(0.01)\n"
        "time.sleep(0.5); print('over')"
    )
    command = Command((sys.executable, "-c", parent), {"COREFLEET_TOY": "1"})
    seen = execute(command, tmp_path, tmp_path / "log", 60, memory=True)
    assert seen.code == 0
    assert (tmp_path / "log").read_text() == "over\n"
    if sys.platform == "linux":
        assert seen.peak_bytes > 50e6
        assert not _with_variable(b"COREFLEET_TOY=1")


def _with_variable(marker: bytes) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_command_that_never_ends_is_ended(tmp_path: Path) -> None:
    command = Command((sys.executable, "-c", "import time; time.sleep(600)"), {})
    start = time.monotonic()
    with pytest.raises(RoundError, match="took more than"):
        execute(command, tmp_path, tmp_path / "log", 0.2)
    assert time.monotonic() - start < processes.END_TIMEOUT_S


def test_memory_is_sampled_where_it_is_asked_for_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampled(sampler: object) -> None:
        raise AssertionError("a sampler was started")

    monkeypatch.setattr(processes._Memory, "__enter__", sampled)
    seen = execute(Command((sys.executable, "-c", "pass"), {}), tmp_path, tmp_path / "log", 60)
    assert (seen.code, seen.peak_bytes) == (0, 0)


DETACHED = """
import sys, threading
with open(sys.argv[1], "w") as pipe:
    print("ready", file=pipe, flush=True)
    threading.Event().wait(float(sys.argv[2]))
    print("too late", file=pipe)
"""
STARTS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True).wait()
"""
RUNS = """
import sys
from pathlib import Path
from simulations.processes import Command, execute
folder = Path(sys.argv[1])
words = (sys.executable, "-c", *sys.argv[2:])
execute(Command(words, {}), folder, folder / "log", 600)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_ends_with_whoever_runs_it_whatever_ends_that(
    tmp_path: Path, number: signal.Signals
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = [str(tmp_path), STARTS, DETACHED, str(fifo), str(TOO_LATE_S)]
    runner = subprocess.Popen([sys.executable, "-c", RUNS, *words], start_new_session=True)
    with runner, fifo.open() as pipe:
        assert pipe.readline() == "ready\n"
        runner.send_signal(number)
        assert runner.wait() == -number
        # The end of the file comes when the last process that may write to it is gone.
        assert pipe.read() == ""
