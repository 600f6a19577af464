"""What a registry's file holds, in numbers and in names that were taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from server.control.operators import revoked_serials
from server.registry import chain, tables
from server.registry.database import Database, url_of

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """A registry in numbers.

    Args:
        devices: Ever enrolled.
        rounds: Attempts.
        releases: Releases.
        seq: Number of the audit's last row.
        admitted: Device by the fingerprint of its key, of all whose key is good.
        refused: Fingerprints of all keys that were revoked.
        revoked_certificates: Of operators, by serial number.
        quarantined: Fingerprints of the keys that are good and in quarantine.
    """

    devices: int
    rounds: int
    releases: int
    seq: int
    admitted: Mapping[str, str] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    revoked_certificates: tuple[str, ...] = ()
    quarantined: frozenset[str] = frozenset()

    def record(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        names = ("devices", "rounds", "releases", "seq")
        return {name: value for name, value in asdict(self).items() if name in names}

    @property
    def text(self) -> str:
        """The numbers in words."""
        parts = [
            f"{count} {noun if count != 1 else noun[:-1]}"
            for noun, count in list(self.record().items())[:3]
        ]
        return f"{', '.join(parts)}, audit up to row {self.seq}"


def survey(path: Path) -> Survey:
    """Count what a registry's file holds, without changing it; of any revision.

    Raises:
        StorageError: It cannot be read.
    """
    database = Database(url_of(path), as_found=True)
    try:
        with database.read() as connection:
            counts = [
                int(connection.execute(select(func.count()).select_from(table)).scalar_one())
                for table in (tables.devices, tables.rounds, tables.releases)
            ]
            seq, _ = chain.head(connection)
            devices, rounds, releases = counts
            good, revoked = _admitted(connection), _refused(connection)
            serials, kept_out = revoked_serials(connection), _quarantined(connection)
            return Survey(devices, rounds, releases, seq, good, revoked, serials, kept_out)
    finally:
        database.close()


def _admitted(connection: Connection) -> dict[str, str]:
    kept = tables.devices.c
    found = select(kept.fingerprint, kept.name).where(kept.state != "revoked")
    return {row.fingerprint: row.name for row in connection.execute(found)}


def _quarantined(connection: Connection) -> frozenset[str]:
    kept = tables.devices.c
    found = select(kept.fingerprint).where(kept.state == "quarantined")
    return frozenset(connection.execute(found).scalars())


def _refused(connection: Connection) -> frozenset[str]:
    kept = tables.device_keys.c
    found = select(kept.fingerprint).where(kept.revoked_at_s.is_not(None))
    return frozenset(connection.execute(found).scalars())
