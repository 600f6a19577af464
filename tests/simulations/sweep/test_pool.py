from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from simulations.sweep.pool import Lost, Pool
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


def test_an_interrupt_does_not_wait_for_what_runs() -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Pool(2, hang, PRELOAD) as pool:
        # Pressed from the loop that waits on the workers, as a terminal would.
        list(pool.run([FOR_EVER], lambda item: press_soon()))
    assert time.monotonic() - begun < FOR_EVER / 2


def press_soon() -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
