"""The durable truth of a fleet: devices, bases, releases, rounds, updates and the audit.

    open_registry(place, clock=time.time) ──► Registry
        .devices .bases .releases .rounds .audit .policy .orders .observations
        .open_round()   .replay(round)   .backup(path)

One SQLite file by default, PostgreSQL by URL. It needs SQLAlchemy and alembic; no torch, no Flower.
"""

from server.registry.audit import Head
from server.registry.backup import restore
from server.registry.registry import Registry, open_registry

__all__ = ["Head", "Registry", "open_registry", "restore"]
