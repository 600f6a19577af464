"""What rules remember beside each release, and who holds the registry as its service."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "memories",
        sa.Column("release", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rule", sa.String(length=64), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("moments", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("steps >= 1", name=op.f("ck_memories_steps")),
        sa.ForeignKeyConstraint(["release"], ["releases.number"], name="fk_memories_release"),
        sa.PrimaryKeyConstraint("release", name="pk_memories"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("host", sa.String(length=128), nullable=False),
        sa.Column("place", sa.String(length=128), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("ticks", BIG, nullable=False),
        sa.Column("taken_at_s", sa.Float(precision=53), nullable=False),
        sa.Column("renewed_at_s", sa.Float(precision=53), nullable=False),
        sa.Column("expires_at_s", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint("epoch >= 1", name=op.f("ck_leases_epoch")),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
