"""Tables of ``results.sqlite``. A change of any of them is a new :data:`FORMAT`."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
)

__all__ = ["FORMAT", "METADATA", "STATES", "cells", "results", "rounds", "sweep"]

FORMAT = "corefleet.sweep.2"
STATES = ("queued", "running", "done", "failed")
METADATA = MetaData()

sweep = Table(
    "sweep",
    METADATA,
    Column("format", String, primary_key=True),
    Column("title", String, nullable=False),
    Column("axes", JSON, nullable=False),  # keys in the order in which the last recipe named them
    Column("created_at", String, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("machine", String, nullable=False),
)

cells = Table(
    "cells",
    METADATA,
    Column("id", String, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("config", JSON, nullable=False),
    Column("methods", JSON, nullable=False),
    Column("engine", String, nullable=False),
    Column("base_key", String, nullable=False),
    Column("state", String, CheckConstraint(f"state IN {STATES}"), nullable=False),
    Column("error_code", String, nullable=False, default=""),
    Column("error", String, nullable=False, default=""),
    Column("hint", String, nullable=False, default=""),
    Column("seconds", Float),
)


def _scores() -> list[Column[float]]:
    names = ("macro_f1", "macro_f1_devices_mean", "macro_f1_devices_worst_decile")
    return [Column(name, Float) for name in names]


def _traffic() -> list[Column[int]]:
    names = ("bytes_up", "bytes_down", "wire_bytes_up", "wire_bytes_down")
    return [Column(name, Integer, nullable=False) for name in names]


results = Table(
    "results",
    METADATA,
    Column("cell", ForeignKey("cells.id"), primary_key=True),
    Column("method", String, primary_key=True),
    Column("position", Integer, nullable=False),
    *_scores(),
    Column("trained_parameters", Integer, nullable=False),
    Column("learning_rate", Float, nullable=False),
    *_traffic(),
    Column("refused", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("digest", String, nullable=False),
    Column("base_digest", String, nullable=False),
    Column("hours", Float),  # simulated, as the next; NULL without a trace
    Column("hours_to_target", Float),
)

rounds = Table(
    "rounds",
    METADATA,
    Column("cell", ForeignKey("cells.id"), primary_key=True),
    Column("method", String, primary_key=True),
    Column("round", Integer, primary_key=True),
    *_scores(),
    *_traffic(),
    Column("accepted", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("digest", String, nullable=False),
)
