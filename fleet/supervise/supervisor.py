"""The loop that keeps processes running: one thread, no polling of children.

It waits for output, signals (a child's end is one) and the next thing that is due, and lets every
ward do what its course says. On SIGTERM or SIGINT the processes end in the reverse of their order,
each after what depends on it: a SuperNode takes leave of its server while its agent still answers.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path

from fleet.errors import Interrupted, StorageError
from fleet.supervise.child import adopt_orphans, ticks_of
from fleet.supervise.leftovers import end_leftovers
from fleet.supervise.record import Program, RunLock, RunRecord, read_run, write_run
from fleet.supervise.signals import Signals
from fleet.supervise.told import Tell, Told
from fleet.supervise.ward import REAP_LIMIT_S, Spec, Ward, World

__all__ = ["LOG_FOLDER", "Supervisor"]

LOG_FOLDER = "log"
LEAVING = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Keeps processes running until it is told to stop.

    Args:
        specs: The processes in the order of their start.
        state: State directory; the record, the lock and the logs lie in it.
        log_bytes: Most bytes of each log.
        program: The command that runs it.
        world: Clocks and chance.
        tell: Told of every event.
        hear: Given the process's name and every line that it prints.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        state: Path,
        log_bytes: int,
        program: Program,
        world: World,
        tell: Tell,
        hear: Callable[[str, str], None],
    ) -> None:
        self._state, self._world, self._tell = state, world, tell
        self._specs, self._log_bytes, self._hear = specs, log_bytes, hear
        self._program = program
        self._wards: list[Ward] = []
        self._since: datetime = world.now()
        self._written: RunRecord | None = None
        self._unwritable = False
        self._leave_because: signal.Signals | None = None

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until a process must not be started again.

        Returns:
            The exit code: 0 after SIGTERM, 130 after SIGINT.

        Raises:
            StorageError: ``already-running``, or that there can be no lock.
            FleetError: What made a process end for good; the others were stopped.
        """
        with ExitStack() as stack:
            stack.enter_context(closing(RunLock(self._state, self._program)))
            signals = stack.enter_context(Signals())
            adopt_orphans()
            end_leftovers(read_run(self._state), self._tell)
            self._wards = [self._ward(spec) for spec in self._specs]
            stack.callback(self._end_everything)
            self._loop(signals)
        failure = next((ward.failure for ward in self._wards if ward.failure), None)
        if failure is not None:
            raise failure
        return Interrupted.exit_code if self._leave_because is signal.SIGINT else 0

    def _ward(self, spec: Spec) -> Ward:
        logs = self._state / LOG_FOLDER
        return Ward(spec, logs, self._log_bytes, self._world, self._tell, self._hear)

    def _loop(self, signals: Signals) -> None:
        while True:
            for ward in self._wards:
                ward.advance()
            if self._is_leaving() and self._leave():
                return
            self._write()
            self._wait(signals)

    def _wait(self, signals: Signals) -> None:
        now_s = self._world.clock()
        timeout_s = min(ward.next_s(now_s) for ward in self._wards)
        # A selector per turn: a child's descriptor may be another's by the next one.
        with selectors.DefaultSelector() as selector:
            selector.register(signals, selectors.EVENT_READ)
            for ward in self._wards:
                if ward.output is not None:
                    selector.register(ward.output, selectors.EVENT_READ, ward)
            for key, _ in selector.select(timeout_s):
                if isinstance(key.data, Ward):
                    key.data.pump()
        for number in signals.take():
            self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        if number in LEAVING and self._leave_because is not None:
            self._tell(Told("run.hurried", f"{number.name} again: everything is killed"))
            for ward in self._wards:
                ward.kill()
        elif number in LEAVING:
            self._leave_because = number
            self._tell(Told("run.stopping", f"stops after {number.name}"))
        elif number is signal.SIGHUP:
            for ward in self._wards:
                if ward.spec.recycled_on_hangup:
                    ward.recycle("SIGHUP")

    def _is_leaving(self) -> bool:
        return self._leave_because is not None or any(ward.failure for ward in self._wards)

    def _leave(self) -> bool:
        """Stop the last process that still runs; return whether there was none."""
        for ward in reversed(self._wards):
            ward.stop()
            if ward.child is not None:
                return False
        return True

    def _end_everything(self) -> None:
        """Leave nothing behind, also after an error of ours; write down the end."""
        for ward in self._wards:
            ward.kill()
        until = time.monotonic() + REAP_LIMIT_S
        for ward in self._wards:
            ward.reap(max(0.0, until - time.monotonic()))
        failed = next((ward.failure.code for ward in self._wards if ward.failure), "")
        why = self._leave_because.name if self._leave_because is not None else failed
        self._write(ended=self._world.now(), why=why or "bug")
        left = [f"{w.spec.name} (pid {w.child.pid})" for w in self._wards if w.child is not None]
        text = f"ended; still there: {', '.join(left)}" if left else "every process has ended"
        self._tell(Told("run.ended", text))

    def _write(self, ended: datetime | None = None, why: str = "") -> None:
        record = RunRecord(
            pid=os.getpid(),
            ticks=ticks_of(os.getpid()) or 0,
            since=self._since,
            ended=ended,
            why=why,
            processes={ward.spec.name: ward.record() for ward in self._wards},
        )
        if record == self._written:
            return
        self._written = record
        try:
            write_run(self._state, record)
            self._unwritable = False
        except StorageError as error:  # a full disk must not end what it only describes
            if not self._unwritable:
                self._tell(Told("run.unwritten", error.message, data={"error_code": error.code}))
            self._unwritable = True
