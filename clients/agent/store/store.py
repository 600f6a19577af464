"""The store of one device, opened: its tables, and the check that comes before."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from clients.agent.store.checkpoints import Checkpoints
from clients.agent.store.database import Database
from clients.agent.store.fishers import FisherTable
from clients.agent.store.forget import forget_person
from clients.agent.store.journal import Journal
from clients.agent.store.labels import LabelTable
from clients.agent.store.lease import Lease, refusal
from clients.agent.store.outbox import Outbox
from clients.agent.store.personal import PersonalTable
from clients.agent.store.records import Caps, Forgotten
from clients.agent.store.repair import damage_of, header_damage, pending, repair, settle
from clients.agent.store.residuals import ResidualTable
from clients.agent.store.schema import check_ours, migrate
from clients.agent.store.small import Counters, Positions, State
from clients.agent.store.windows import WindowTable
from fleet.errors import StorageError

__all__ = ["FILE_NAME", "Store", "open_reader", "open_store"]

FILE_NAME = "store.sqlite"
LOCK_NAME = "store.lock"


class Store:
    """Everything durable of a device but its models; made by :func:`open_store`.

    Every method that writes returns when the disk has it, or raises and kept nothing.

    Attributes:
        windows: Signals.
        labels: What was said about them.
        outbox: Answers to plans.
        journal: What training did.
        checkpoints: A training under way, to go on with after a restart.
        residuals: What compression has lost of updates, to be added to the next.
        fishers: Which entries its trainings lean on, for elastic weight consolidation.
        personal: The private core.
        personal_checkpoints: A training of it under way.
        counters: Numbers that only grow.
        state: Values by name.
        positions: How far each source was taken in.
        notices: What people should know of this opening, e.g. of a repair.
    """

    def __init__(
        self,
        database: Database,
        caps: Caps,
        clock: Callable[[], float],
        notices: tuple[str, ...] = (),
        lease: Lease | None = None,
    ) -> None:
        self.database = database
        self.caps = caps
        self.notices = notices
        self._lease = lease
        self.windows = WindowTable(database, caps, clock)
        self.labels = LabelTable(database, caps, clock)
        self.outbox = Outbox(database, caps, clock)
        self.journal = Journal(database, caps, clock)
        self.checkpoints = Checkpoints(database, clock)
        self.residuals = ResidualTable(database)
        self.fishers = FisherTable(database)
        self.personal = PersonalTable(database, clock)
        self.personal_checkpoints = Checkpoints(database, clock, "personal_")
        self.counters = Counters(database)
        self.state = State(database)
        self.positions = Positions(database, clock)

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Make all writes of a block one: on the disk when it ends, or none of them."""
        return self.database.write()

    def forget(self, person: str) -> Forgotten:
        """Delete what the device holds of a person, see :func:`forget_person`."""
        return forget_person(self.database, person)

    def tidy(self) -> bool:
        """Give freed space back to the disk, see :meth:`Database.tidy`."""
        return self.database.tidy()

    def close(self) -> None:
        """Close the store; a second time does nothing."""
        self.database.close()
        if self._lease is not None:
            self._lease.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_store(folder: Path, *, clock: Callable[[], float], caps: Caps | None = None) -> Store:
    """Open a device's store for writing; make it, migrate it or repair it first where needed.

    Args:
        folder: The state directory; made with access for its owner alone.
        clock: Seconds since the epoch, e.g. ``time.time``.
        caps: Limits; None takes the defaults.

    Raises:
        StorageError: ``store-busy``, ``store-newer``, ``not-a-store``, ``disk-full``, ``read-only``
            or ``store-unopenable``. A damaged store is no error: see ``notices``.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lease = Lease(folder / LOCK_NAME)
        try:
            database, notices = _whole(path, lease, clock)
        except BaseException:
            lease.close()
            raise
    except OSError as error:
        raise refusal(path, error) from error
    return Store(database, caps or Caps(), clock, notices, lease)


def open_reader(folder: Path, *, clock: Callable[[], float], caps: Caps | None = None) -> Store:
    """Open a device's store for reading alone, while another process may write it.

    Raises:
        StorageError: ``store-unopenable`` where there is none; others as :func:`open_store`.
    """
    database = Database(folder / FILE_NAME, readonly=True)
    try:
        check_ours(database)
    except BaseException:
        database.close()
        raise
    return Store(database, caps or Caps(), clock)


def _whole(
    path: Path, lease: Lease, clock: Callable[[], float]
) -> tuple[Database, tuple[str, ...]]:
    """Return the store's database, whole and of the newest version, and what had to be done."""
    if pending(path):
        lease.alone()
        settle(path)
        lease.shared()
    database, damage = _checked(path)
    notices: tuple[str, ...] = ()
    if database is None:
        lease.alone()
        notices = (repair(path, damage, clock()),)
        lease.shared()
        database = Database(path)
    try:
        migrate(database)
    except BaseException:
        database.close()
        raise
    return database, notices


def _checked(path: Path) -> tuple[Database | None, str]:
    """Open the file; return None and what is wrong when it is damaged."""
    if damage := header_damage(path):
        return None, damage
    try:
        database = Database(path)
    except StorageError as error:
        if error.code != "store-damaged":
            raise
        return None, error.message
    try:
        damage = damage_of(database)
        if not damage:
            check_ours(database)
            return database, ""
    except BaseException:
        database.close()
        raise
    database.close()
    return None, damage
