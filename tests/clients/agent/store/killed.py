"""Run as a process: a store whose writer is killed at every statement, one after the other.

It forks a child for each statement, so that the interpreter starts once. The child works on a fresh
store, reports what was acknowledged through a pipe, and dies by SIGKILL just before its n-th
statement, or meets a system that refuses to let any file grow beyond some size; the parent then
opens the store and holds it to the acknowledgements.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clients.agent.store import Store, database, open_store
from clients.agent.store.store import FILE_NAME
from fleet.errors import StorageError
from tests.clients.agent.store.windows import SHAPE, TRAIN, batch, opened

Ack = Callable[[str], None]
Work = Callable[[Store, Ack], None]
DONE, BROKEN, REFUSED = 0, 1, 2
REFUSED_STEP = 6000  # no multiple of a page, so that writes are cut short too


def work(store: Store, acknowledge: Ack) -> None:
    """Use every kind of write; say so after each."""
    acknowledge("opened")
    for number in range(3):
        store.windows.add("ada", "s", batch(2, first=2 * number), TRAIN)
        acknowledge(f"windows {2 * number + 2}")
    store.labels.range("ada", 0.0, 2.0, "walking", "ada")
    acknowledge("labels")
    store.windows.pin([1])
    acknowledge("pin")
    store.outbox.put("p1", 1, b"update", ["ada"])
    acknowledge("outbox")
    store.outbox.mark_delivered("p1")
    acknowledge("delivered")
    with store.transaction():
        store.journal.add("p1", 1, "finished", ["ada"])
        store.counters.add({"x": 1})
    acknowledge("both")
    store.forget("ada")
    acknowledge("forgotten")


def check(store: Store, acknowledged: list[str]) -> None:
    """Hold a reopened store to what was acknowledged; more may be there, halves may not."""
    assert store.notices == (), store.notices
    if "forgotten" in acknowledged:
        assert store.windows.counts() == {}
        return
    found = store.windows.load(SHAPE)
    count = len(found.ids)
    forgetting = "both" in acknowledged  # the last write may be there without its acknowledgement
    assert found.damaged == 0
    assert count % 2 == 0
    if forgetting and count == 0:
        assert store.journal.entries() == ()
        return
    assert count >= max([int(one.split()[1]) for one in acknowledged if "windows" in one] or [0])
    for start, x in zip(found.start_s, found.x, strict=True):
        assert (x == batch(2, first=int(start) // 2 * 2).signals[int(start) % 2]).all()
    labelled = len(store.windows.load(SHAPE, labelled=True).ids)
    assert labelled in ((2,) if "labels" in acknowledged else (0, 2))
    assert "pin" not in acknowledged or store.windows.load(SHAPE, pinned=True).ids.tolist() == [1]
    sent = store.outbox.get("p1")
    assert "outbox" not in acknowledged or (sent is not None and sent.payload == b"update")
    assert "delivered" not in acknowledged or (sent is not None and sent.delivered_s is not None)
    together = (len(store.journal.entries()), store.counters.all().get("x", 0))
    assert together in (((1, 1),) if "both" in acknowledged else ((0, 0), (1, 1)))


def die_before(statement: int) -> None:
    """Kill this process just before the n-th statement of any connection made from now on."""
    left = [statement]

    def count(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    connected = database._connected

    def counted(path: Path, readonly: bool) -> sqlite3.Connection:
        connection = connected(path, readonly)
        connection.set_trace_callback(count)
        return connection

    database._connected = counted


def refuse_beyond(size: int) -> None:
    """Make the system refuse every write beyond this many bytes of a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def damaged(folder: Path) -> Path:
    """Make a store of which one page is lost."""
    with opened(folder) as store:
        store.windows.add("ada", "s", batch(300), TRAIN)
    path = folder / FILE_NAME
    content = bytearray(path.read_bytes())
    content[14 * 4096 : 15 * 4096] = b"\xa5" * 4096
    path.write_bytes(bytes(content))
    return folder


def check_repaired(store: Store) -> None:
    """Hold a repaired store to what it had: most windows, each as it was."""
    found, given = store.windows.load(SHAPE), batch(300)
    assert 200 <= len(found.ids) <= 300, len(found.ids)
    assert (found.x == given.signals[found.start_s.astype(int)]).all()


def forked(folder: Path, prepare: Callable[[], None], work: Work) -> tuple[int, list[str]]:
    """Work in a child process; returns how it ended, and what was acknowledged before."""
    mine, theirs = os.pipe()
    process = os.fork()
    if not process:
        os.close(mine)
        code = BROKEN
        try:
            prepare()
            with open_store(folder, clock=lambda: 1.0) as store:
                work(store, lambda text: void(os.write(theirs, text.encode() + b"\n")))
            code = DONE
        except StorageError:
            code = REFUSED
        finally:
            os._exit(code)
    os.close(theirs)
    with open(mine, encoding="utf-8") as acknowledgements:
        acknowledged = acknowledgements.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), acknowledged


def void(_: object) -> None:
    return None


def nothing(store: Store, acknowledge: Ack) -> None:
    """Only open the store."""


def main(kind: str, folder: Path) -> None:
    ends: list[int] = []
    template = damaged(folder / "template") if kind == "repairing" else None
    while DONE not in ends:
        place, number = folder / str(len(ends)), len(ends)
        if template is not None:
            shutil.copytree(template, place)
            end, acknowledged = forked(place, partial(die_before, 7 * number), nothing)
        elif kind == "killed":
            end, acknowledged = forked(place, partial(die_before, number), work)
        else:
            end, acknowledged = forked(place, partial(refuse_beyond, REFUSED_STEP * number), work)
        assert end in (DONE, REFUSED, -signal.SIGKILL), end
        with opened(place) as store:
            if template is not None:
                check_repaired(store)
            else:
                check(store, acknowledged)
        ends.append(end)
    print(json.dumps({"ends": ends, "acknowledged": acknowledged}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
