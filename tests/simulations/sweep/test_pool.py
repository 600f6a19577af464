from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from simulations.sweep.pool import HIRES, Lost, Pool
from simulations.sweep.run import PRELOAD

FOR_EVER = 60.0


def double(item: int) -> int:
    return 2 * item


def end_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def hang(item: float) -> float:
    threading.Event().wait(item)  # nobody sets it
    return item


def test_every_item_is_done_once() -> None:
    begun: list[int] = []
    with Pool(2, double, PRELOAD) as pool:
        assert sorted(pool.run(range(8), begun.append)) == [(i, 2 * i) for i in range(8)]
        assert list(pool.run([])) == []
    assert begun == list(range(8))


def test_a_process_that_dies_takes_only_its_own_job_with_it() -> None:
    with Pool(1, end_at_three, PRELOAD) as pool:
        done = dict(pool.run(range(6)))
    lost = done.pop(3)
    assert isinstance(lost, Lost)
    assert lost.code == -signal.SIGKILL
    assert done == {i: i for i in (0, 1, 2, 4, 5)}


def test_a_process_that_dies_while_it_is_idle_is_replaced_and_costs_nothing() -> None:
    with Pool(1, double, PRELOAD) as pool:
        assert list(pool.run([1])) == [(1, 2)]
        (idle,) = pool._workers
        idle.process.kill()
        idle.process.join()
        assert list(pool.run([2, 3])) == [(2, 4), (3, 6)]
        assert idle not in pool._workers


def test_processes_that_die_at_once_are_replaced_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hire, hired = Pool._hire, []

    def hire_the_dead(pool: Pool[int, int]) -> Any:
        worker = hire(pool)
        worker.process.kill()
        worker.process.join()
        hired.append(worker)
        return worker

    monkeypatch.setattr(Pool, "_hire", hire_the_dead)
    with Pool(1, double, PRELOAD) as pool:
        ((item, lost),) = pool.run([1])
        assert pool._workers == []
    assert isinstance(lost, Lost)
    assert (item, lost.code, len(hired)) == (1, -signal.SIGKILL, HIRES)


def test_an_interrupt_does_not_wait_for_what_runs(interruptible: None) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Pool(2, hang, PRELOAD) as pool:
        # Pressed from the loop that waits on the workers, as a terminal would.
        list(pool.run([FOR_EVER], lambda item: press_soon()))
    assert time.monotonic() - begun < FOR_EVER / 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works here also where whoever started the tests has it ignored, as a shell's ``&``."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_soon() -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
