"""The tables of the standing service: what it is to do, what was ordered, what it found.

    policies (append-only versions)     orders (an operator's, to the service)
    heartbeat (one row: it is alive)    absences (of a round: who was not asked, and why)
    evaluations (of a release)          deliveries (a release that a device does not serve yet)
    device_bytes (by device and day)
    memories (what a rule remembers, by release)
    leases (one row: whose service writes here, and in which epoch)

Conventions are those of :mod:`server.registry.tables`.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
)

from server.registry.tables import BIG, DIGEST, METADATA, NAME, TIME, who

__all__ = [
    "absences",
    "deliveries",
    "device_bytes",
    "evaluations",
    "heartbeat",
    "leases",
    "memories",
    "orders",
    "policies",
]

policies = Table(
    "policies",
    METADATA,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("policy", Text, nullable=False),
    *who("set"),
    CheckConstraint("version >= 1", name="version"),
)

orders = Table(
    "orders",
    METADATA,
    Column("id", BIG, primary_key=True),
    Column("verb", String(32), nullable=False),
    Column("args", Text, nullable=False),
    Column("state", String(16), nullable=False),
    *who("placed"),
    *who("taken"),
    *who("finished"),
    Column("result", Text),
    CheckConstraint("state IN ('waiting', 'taken', 'done', 'failed')", name="state"),
    Index("ix_orders_state", "state"),
)

heartbeat = Table(
    "heartbeat",
    METADATA,
    Column("name", NAME, primary_key=True),
    Column("alive_at_s", TIME, nullable=False),
    Column("started_at_s", TIME, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", NAME, nullable=False),
    Column("doing", Text, nullable=False),
)

absences = Table(
    "absences",
    METADATA,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("device", NAME, primary_key=True),
    Column("reason", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    ForeignKeyConstraint(("round", "attempt"), ["rounds.round", "rounds.attempt"]),
)

evaluations = Table(
    "evaluations",
    METADATA,
    Column("release", ForeignKey("releases.number"), primary_key=True, autoincrement=False),
    Column("device", NAME, primary_key=True),
    Column("confusion", Text, nullable=False),
    Column("at_s", TIME, nullable=False),
)

deliveries = Table(
    "deliveries",
    METADATA,
    Column("device", ForeignKey("devices.name"), primary_key=True),
    Column("release", ForeignKey("releases.number"), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("told_at_s", TIME, nullable=False),
    Column("reason", Text, nullable=False, default="", server_default=""),
)

device_bytes = Table(
    "device_bytes",
    METADATA,
    Column("device", ForeignKey("devices.name"), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("bytes", BIG, nullable=False),
)

memories = Table(
    "memories",
    METADATA,
    Column("release", ForeignKey("releases.number"), primary_key=True, autoincrement=False),
    Column("rule", String(64), nullable=False),
    Column("steps", Integer, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("moments", LargeBinary, nullable=False),
    CheckConstraint("steps >= 1", name="steps"),
)

leases = Table(
    "leases",
    METADATA,
    Column("name", NAME, primary_key=True),
    Column("epoch", BIG, nullable=False),
    Column("host", NAME, nullable=False),
    Column("place", NAME, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("ticks", BIG, nullable=False),
    Column("taken_at_s", TIME, nullable=False),
    Column("renewed_at_s", TIME, nullable=False),
    Column("expires_at_s", TIME, nullable=False),
    CheckConstraint("epoch >= 1", name="epoch"),
)
