"""What a registry's file holds, in numbers and in names that were taken away."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

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
        revoked_devices: By name.
        revoked_certificates: Of operators, by serial number.
    """

    devices: int
    rounds: int
    releases: int
    seq: int
    revoked_devices: tuple[str, ...] = ()
    revoked_certificates: tuple[str, ...] = ()

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
            kept = tables.devices.c
            gone = select(kept.name).where(kept.state == "revoked").order_by(kept.name)
            names = tuple(connection.execute(gone).scalars())
            seq, _ = chain.head(connection)
            devices, rounds, releases = counts
            return Survey(devices, rounds, releases, seq, names, revoked_serials(connection))
    finally:
        database.close()
