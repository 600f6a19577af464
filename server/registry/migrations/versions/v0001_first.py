"""The first registry: devices, bases, releases, rounds and the audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# The audit takes rows at its end, in order, and never lets one go.
_SQLITE = (
    """CREATE TRIGGER audit_in_order BEFORE INSERT ON audit
    WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit)
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END""",
    """CREATE TRIGGER audit_keeps_rows BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END""",
    """CREATE TRIGGER audit_keeps_text BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END""",
)
_POSTGRES = (
    """CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'the audit is append-only'
        USING ERRCODE = 'integrity_constraint_violation';
    END $$""",
    """CREATE FUNCTION audit_next() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit) THEN
            RAISE EXCEPTION 'the audit is append-only'
            USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END $$""",
    """CREATE TRIGGER audit_in_order BEFORE INSERT ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_next()""",
    """CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
)


def upgrade() -> None:
    """Make everything."""
    for part in (_releases, _devices, _rounds, _answers, _ledger):
        part()
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in _SQLITE if sqlite else _POSTGRES:
        op.execute(statement)
    op.execute("INSERT INTO corefleet (format) VALUES ('corefleet.registry')")


def _releases() -> None:
    op.create_table(
        "bases",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.Column("installed_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("installed_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("installed_why", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("(path IS NULL) <> (content IS NULL)", name=op.f("ck_bases_place")),
        sa.PrimaryKeyConstraint("digest", name="pk_bases"),
    )
    op.create_table(
        "releases",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("parent", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=64), nullable=False),
        sa.Column("frame", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=128), nullable=False),
        sa.Column("state_digest", sa.String(length=64), nullable=False),
        sa.Column("provenance", sa.Text(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("created_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("created_why", sa.Text(), server_default="", nullable=False),
        sa.Column("withdrawn_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("withdrawn_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("withdrawn_why", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("number >= 0", name=op.f("ck_releases_number")),
        sa.ForeignKeyConstraint(["base"], ["bases.digest"], name="fk_releases_base"),
        sa.PrimaryKeyConstraint("number", name="pk_releases"),
        sa.UniqueConstraint("digest", name="uq_releases_digest"),
    )
    op.create_table(
        "promotions",
        sa.Column("id", BIG, nullable=False),
        sa.Column("release", sa.Integer(), nullable=False),
        sa.Column("promoted_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("promoted_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("promoted_why", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["release"], ["releases.number"], name="fk_promotions_release"),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )


def _devices() -> None:
    op.create_table(
        "devices",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("enrolled_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("enrolled_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("enrolled_why", sa.Text(), server_default="", nullable=False),
        sa.Column("quarantined_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("quarantined_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("quarantined_why", sa.Text(), server_default="", nullable=False),
        sa.Column("revoked_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("revoked_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("revoked_why", sa.Text(), server_default="", nullable=False),
        sa.Column("seen_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("serves", sa.String(length=64), server_default="", nullable=False),
        sa.Column("serves_release", BIG, server_default="-1", nullable=False),
        sa.Column("pinned", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "state IN ('enrolled', 'quarantined', 'revoked')", name=op.f("ck_devices_state")
        ),
        sa.ForeignKeyConstraint(["pinned"], ["releases.number"], name="fk_devices_pinned"),
        sa.PrimaryKeyConstraint("name", name="pk_devices"),
    )
    op.create_table(
        "device_keys",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("revoked_at_s", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_device_keys_device"),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_device_keys"),
    )
    op.create_table(
        "device_tags",
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_device_tags_device"),
        sa.PrimaryKeyConstraint("device", "tag", name="pk_device_tags"),
    )
    op.create_index("ix_device_tags_tag", "device_tags", ["tag"], unique=False)


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("plan_id", sa.String(length=16), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("starts_from", sa.Integer(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("opened_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("opened_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("opened_why", sa.Text(), server_default="", nullable=False),
        sa.Column("deadline_at_s", sa.Float(precision=53), nullable=False),
        sa.Column("closed_at_s", sa.Float(precision=53), nullable=True),
        sa.Column("closed_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("closed_why", sa.Text(), server_default="", nullable=False),
        sa.Column("release", sa.Integer(), nullable=True),
        sa.Column("traffic", sa.Text(), server_default="{}", nullable=False),
        sa.CheckConstraint(
            "(state = 'open') = (closed_at_s IS NULL)", name=op.f("ck_rounds_closed")
        ),
        sa.CheckConstraint(
            "(state = 'released') = (release IS NOT NULL)", name=op.f("ck_rounds_released")
        ),
        sa.CheckConstraint(
            "state IN ('open', 'released', 'abandoned')", name=op.f("ck_rounds_state")
        ),
        sa.CheckConstraint("round >= 1 AND attempt >= 1", name=op.f("ck_rounds_number")),
        sa.ForeignKeyConstraint(["release"], ["releases.number"], name="fk_rounds_release"),
        sa.ForeignKeyConstraint(["starts_from"], ["releases.number"], name="fk_rounds_starts_from"),
        sa.PrimaryKeyConstraint("round", "attempt", name="pk_rounds"),
        sa.UniqueConstraint("release", name="uq_rounds_release"),
    )
    op.create_index("ix_rounds_plan_id", "rounds", ["plan_id"], unique=False)
    op.create_index(
        "ux_rounds_one_open",
        "rounds",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "ux_rounds_released_once",
        "rounds",
        ["round"],
        unique=True,
        sqlite_where=sa.text("state = 'released'"),
        postgresql_where=sa.text("state = 'released'"),
    )
    op.create_table(
        "cohort",
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_cohort_device"),
        sa.ForeignKeyConstraint(
            ["round", "attempt"], ["rounds.round", "rounds.attempt"], name="fk_cohort_round_attempt"
        ),
        sa.PrimaryKeyConstraint("round", "attempt", "device", name="pk_cohort"),
    )


def _answers() -> None:
    op.create_table(
        "updates",
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("norm", sa.Float(precision=53), nullable=False),
        sa.Column("arrived_at_s", sa.Float(precision=53), nullable=False),
        sa.Column("header", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["round", "attempt", "device"],
            ["cohort.round", "cohort.attempt", "cohort.device"],
            name="fk_updates_round_attempt_device",
        ),
        sa.PrimaryKeyConstraint("round", "attempt", "device", name="pk_updates"),
    )
    op.create_table(
        "refusals",
        sa.Column("id", BIG, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("earlier", sa.Boolean(), nullable=False),
        sa.Column("at_s", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["round", "attempt"],
            ["rounds.round", "rounds.attempt"],
            name="fk_refusals_round_attempt",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_refusals"),
        sa.UniqueConstraint(
            "round",
            "attempt",
            "device",
            "reason",
            "earlier",
            name="uq_refusals_round_attempt_device_reason_earlier",
        ),
    )


def _ledger() -> None:
    op.create_table(
        "corefleet",
        sa.Column("format", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("format", name="pk_corefleet"),
    )
    op.create_table(
        "audit",
        sa.Column("seq", BIG, autoincrement=False, nullable=False),
        sa.Column("at_s", sa.Float(precision=53), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("verb", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
        sa.UniqueConstraint("hash", name="uq_audit_hash"),
    )
    op.create_table(
        "requests",
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("asked", sa.String(length=64), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("expires_at_s", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_requests"),
    )
    op.create_index("ix_requests_expires_at_s", "requests", ["expires_at_s"], unique=False)
