"""The standing service: policy, orders, heartbeat, absences, evaluations, deliveries, bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    _ordered()
    _observed()


def _who(what: str) -> list[sa.Column[object]]:
    return [
        sa.Column(f"{what}_at_s", sa.Float(precision=53), nullable=True),
        sa.Column(f"{what}_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column(f"{what}_why", sa.Text(), server_default="", nullable=False),
    ]


def _ordered() -> None:
    op.create_table(
        "policies",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        *_who("set"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_policies_version")),
        sa.PrimaryKeyConstraint("version", name="pk_policies"),
    )
    op.create_table(
        "orders",
        sa.Column("id", BIG, nullable=False),
        sa.Column("verb", sa.String(length=32), nullable=False),
        sa.Column("args", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        *_who("placed"),
        *_who("taken"),
        *_who("finished"),
        sa.Column("result", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'taken', 'done', 'failed')", name=op.f("ck_orders_state")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
    )
    op.create_index("ix_orders_state", "orders", ["state"], unique=False)


def _observed() -> None:
    op.create_table(
        "heartbeat",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("alive_at_s", sa.Float(precision=53), nullable=False),
        sa.Column("started_at_s", sa.Float(precision=53), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("doing", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_heartbeat"),
    )
    op.create_table(
        "absences",
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["round", "attempt"],
            ["rounds.round", "rounds.attempt"],
            name="fk_absences_round_attempt",
        ),
        sa.PrimaryKeyConstraint("round", "attempt", "device", name="pk_absences"),
    )
    op.create_table(
        "evaluations",
        sa.Column("release", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("confusion", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["release"], ["releases.number"], name="fk_evaluations_release"),
        sa.PrimaryKeyConstraint("release", "device", name="pk_evaluations"),
    )
    op.create_table(
        "deliveries",
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("release", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("told_at_s", sa.Float(precision=53), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_deliveries_device"),
        sa.ForeignKeyConstraint(["release"], ["releases.number"], name="fk_deliveries_release"),
        sa.PrimaryKeyConstraint("device", name="pk_deliveries"),
    )
    op.create_table(
        "device_bytes",
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bytes", BIG, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_device_bytes_device"),
        sa.PrimaryKeyConstraint("device", "day", name="pk_device_bytes"),
    )
