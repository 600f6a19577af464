"""The registry's tables. A change of any of them is a new revision in ``migrations/versions``.

    bases ◄─ releases ◄─ promotions
               ▲   ▲
        rounds ┘   └ devices ◄─ device_keys, device_tags
          ▲
          ├─ cohort ◄─ updates      audit (append-only, hash-chained)
          └─ refusals               requests (idempotency keys)

Times are seconds since the epoch. JSON is canonical text, so that what a hash covers is what is
there, byte for byte, in every database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "BIG",
    "DIGEST",
    "MARK",
    "METADATA",
    "NAME",
    "TIME",
    "audit",
    "bases",
    "cohort",
    "device_keys",
    "device_tags",
    "devices",
    "mark",
    "promotions",
    "refusals",
    "releases",
    "requests",
    "rounds",
    "updates",
    "who",
]

MARK = "corefleet.registry"
METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
BIG = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows of INTEGER alone
TIME = Float(53)
NAME = String(128)
DIGEST = String(64)


def who(what: str) -> list[Column[Any]]:
    """Return who did something, when and why; empty until it is done."""
    return [
        Column(f"{what}_at_s", TIME),
        Column(f"{what}_by", NAME, nullable=False, default="", server_default=""),
        Column(f"{what}_why", Text, nullable=False, default="", server_default=""),
    ]


mark = Table("corefleet", METADATA, Column("format", String(64), primary_key=True))

bases = Table(
    "bases",
    METADATA,
    Column("digest", DIGEST, primary_key=True),
    Column("size", BIG, nullable=False),
    Column("path", Text),
    Column("content", LargeBinary),
    *who("installed"),
    CheckConstraint("(path IS NULL) <> (content IS NULL)", name="place"),
)

releases = Table(
    "releases",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", DIGEST, nullable=False, unique=True),
    Column("parent", DIGEST, nullable=False),
    Column("base", ForeignKey("bases.digest"), nullable=False),
    Column("frame", DIGEST, nullable=False),
    Column("method", NAME, nullable=False),
    Column("state_digest", DIGEST, nullable=False),
    Column("provenance", Text, nullable=False),
    Column("signature", LargeBinary),
    *who("created"),
    *who("withdrawn"),
    Column("state", LargeBinary, nullable=False),
    CheckConstraint("number >= 0", name="number"),
)

promotions = Table(
    "promotions",
    METADATA,
    Column("id", BIG, primary_key=True),
    Column("release", ForeignKey("releases.number"), nullable=False),
    *who("promoted"),
)

devices = Table(
    "devices",
    METADATA,
    Column("name", NAME, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("fingerprint", DIGEST, nullable=False),
    *who("enrolled"),
    *who("quarantined"),
    *who("revoked"),
    Column("seen_at_s", TIME),
    Column("status", Text),
    Column("serves", DIGEST, nullable=False, default="", server_default=""),
    Column("serves_release", BIG, nullable=False, default=-1, server_default="-1"),
    Column("pinned", ForeignKey("releases.number")),
    CheckConstraint("state IN ('enrolled', 'quarantined', 'revoked')", name="state"),
)

device_keys = Table(
    "device_keys",
    METADATA,
    Column("fingerprint", DIGEST, primary_key=True),
    Column("device", ForeignKey("devices.name"), nullable=False),
    Column("public_key", Text, nullable=False),
    Column("revoked_at_s", TIME),
)

device_tags = Table(
    "device_tags",
    METADATA,
    Column("device", ForeignKey("devices.name"), primary_key=True),
    Column("tag", NAME, primary_key=True),
    Index("ix_device_tags_tag", "tag"),
)

_ONE_ROUND = ("round", "attempt")

rounds = Table(
    "rounds",
    METADATA,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("plan_id", String(16), nullable=False),
    Column("plan", Text, nullable=False),
    Column("starts_from", ForeignKey("releases.number"), nullable=False),
    Column("rule", Text, nullable=False),
    Column("state", String(16), nullable=False),
    *who("opened"),
    Column("deadline_at_s", TIME, nullable=False),
    *who("closed"),
    Column("release", ForeignKey("releases.number"), unique=True),
    Column("traffic", Text, nullable=False, default="{}", server_default="{}"),
    CheckConstraint("round >= 1 AND attempt >= 1", name="number"),
    CheckConstraint("state IN ('open', 'released', 'abandoned')", name="state"),
    CheckConstraint("(state = 'released') = (release IS NOT NULL)", name="released"),
    CheckConstraint("(state = 'open') = (closed_at_s IS NULL)", name="closed"),
    Index("ix_rounds_plan_id", "plan_id"),
    Index(
        "ux_rounds_one_open",
        "state",
        unique=True,
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
    Index(
        "ux_rounds_released_once",
        "round",
        unique=True,
        sqlite_where=text("state = 'released'"),
        postgresql_where=text("state = 'released'"),
    ),
)


def _of_round() -> list[Column[Any]]:
    return [Column(name, Integer, nullable=False) for name in _ONE_ROUND]


cohort = Table(
    "cohort",
    METADATA,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.name"), primary_key=True),
    ForeignKeyConstraint(_ONE_ROUND, ["rounds.round", "rounds.attempt"]),
)

updates = Table(
    "updates",
    METADATA,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("device", NAME, primary_key=True),
    Column("digest", DIGEST, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("norm", TIME, nullable=False),
    Column("arrived_at_s", TIME, nullable=False),
    Column("header", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    ForeignKeyConstraint(
        (*_ONE_ROUND, "device"), ["cohort.round", "cohort.attempt", "cohort.device"]
    ),
)

refusals = Table(
    "refusals",
    METADATA,
    Column("id", BIG, primary_key=True),
    *_of_round(),
    Column("device", NAME, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("earlier", Boolean, nullable=False),
    Column("at_s", TIME, nullable=False),
    ForeignKeyConstraint(_ONE_ROUND, ["rounds.round", "rounds.attempt"]),
    UniqueConstraint(*_ONE_ROUND, "device", "reason", "earlier"),
)

audit = Table(
    "audit",
    METADATA,
    Column("seq", BIG, primary_key=True, autoincrement=False),
    Column("at_s", TIME, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("verb", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", DIGEST, nullable=False),
    Column("hash", DIGEST, nullable=False, unique=True),
)

requests = Table(
    "requests",
    METADATA,
    Column("key", NAME, primary_key=True),
    Column("asked", DIGEST, nullable=False),
    Column("result", Text, nullable=False),
    Column("expires_at_s", TIME, nullable=False),
    Index("ix_requests_expires_at_s", "expires_at_s"),
)
