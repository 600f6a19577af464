"""The registry, opened: one object per noun over one database."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from server.registry.audit import Audit, Head
from server.registry.backup import backup
from server.registry.bases import Bases
from server.registry.database import Database, url_of
from server.registry.devices import Devices
from server.registry.lease import Lease
from server.registry.ledger import Ledger
from server.registry.observations import Observations
from server.registry.orders import Orders
from server.registry.policies import Policies
from server.registry.records import OpenRound
from server.registry.releases import Releases
from server.registry.replay import Replayed, replay
from server.registry.rounds import Rounds
from server.registry.schema import migrate
from server.registry.signers import Signers

__all__ = ["Registry", "open_registry"]


class Registry:
    """The durable truth of a fleet; made by :func:`open_registry`.

    Every method that changes something returns when the disk has it, or raises and kept nothing.
    Threads and processes may share a registry.

    Args:
        database: Of the newest revision.
        clock: Seconds since the epoch.

    Attributes:
        devices: Who is enrolled.
        bases: What releases are relative to.
        releases: What devices serve.
        rounds: What was asked and answered.
        audit: Who did what.
        policy: What the fleet is to do.
        orders: What operators ask of the service.
        observations: What the service found.
        lease: Which service it is.
        signers: Whose signatures releases have.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        ledger = Ledger(database, clock)
        self._ledger = ledger
        self.database = database
        self.devices = Devices(ledger)
        self.bases = Bases(ledger)
        self.releases = Releases(ledger)
        self.rounds = Rounds(ledger)
        self.audit = Audit(ledger)
        self.policy = Policies(ledger)
        self.orders = Orders(ledger)
        self.observations = Observations(ledger)
        self.lease = Lease(ledger)
        self.signers = Signers(ledger)

    def for_service(self) -> Registry:
        """Return this registry as its one service has it: no write without the lease.

        Take it first, by ``lease.take``; a write of one who lost it raises ``lease-lost`` and keeps
        nothing.
        """
        same = Registry(self.database, self._ledger.clock)
        same._ledger.fence = same.lease.check
        return same

    def open_round(self) -> OpenRound | None:
        """Return what a coordinator that starts again has to go on with; None without a round."""
        return self.rounds.open_round()

    def replay(
        self, number: int, *, without: Iterable[str] = (), rule: str | None = None
    ) -> Replayed:
        """Recompute a round's release from its stored updates, see :func:`replay`."""
        return replay(self.rounds, self.releases, number, without=without, rule=rule)

    def backup(self, path: Path) -> Head:
        """Copy the registry to a file, see :func:`server.registry.backup.backup`."""
        return backup(self.database, path)

    def close(self) -> None:
        """Close the registry; a second time does nothing."""
        self.database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_registry(place: str | Path, *, clock: Callable[[], float]) -> Registry:
    """Open a registry; make it or bring it to the newest revision first where needed.

    Args:
        place: A SQLite file, or a URL ``sqlite:///…`` or ``postgresql://…``.
        clock: Seconds since the epoch, e.g. ``time.time``.

    Raises:
        InputError: ``bad-registry-url``.
        UnavailableError: ``extra-missing``.
        StorageError: ``registry-newer``, ``not-a-registry``, ``registry-busy``, ``disk-full``,
            ``read-only``, ``registry-unopenable``, ``registry-unreachable`` or
            ``registry-damaged``.
    """
    database = Database(url_of(place))
    try:
        migrate(database)
    except BaseException:
        database.close()
        raise
    return Registry(database, clock)
