"""Rewrap operations, what their workers have in hand, what failed

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ID = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
_UID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "rewraps",
        sa.Column("project", _ID, nullable=False),
        sa.Column("rewrap", _UID, nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("master_key", sa.String(length=255), nullable=False),
        sa.Column("target_version", sa.Integer(), nullable=False),
        sa.Column("started_by", sa.String(length=2048), nullable=False),
        sa.Column("keys_per_second", sa.Integer(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("rewrapped", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("update_time_us", sa.BigInteger(), nullable=False),
        sa.Column("finish_time_us", sa.BigInteger(), nullable=True),
        sa.Column("cursor_model", _ID, nullable=False),
        sa.Column("cursor_number", sa.Integer(), nullable=False),
        sa.Column("paced_until_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["projects.project"], name=op.f("fk_rewraps_projects")
        ),
        sa.PrimaryKeyConstraint("project", "rewrap", name=op.f("pk_rewraps")),
    )
    op.create_index(op.f("ix_rewraps_state"), "rewraps", ["state"], unique=False)
    op.create_table(
        "rewrap_claims",
        sa.Column("claim", _UID, nullable=False),
        sa.Column("project", _ID, nullable=False),
        sa.Column("rewrap", _UID, nullable=False),
        sa.Column("first_model", _ID, nullable=False),
        sa.Column("first_number", sa.Integer(), nullable=False),
        sa.Column("last_model", _ID, nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("expire_time_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "rewrap"],
            ["rewraps.project", "rewraps.rewrap"],
            name=op.f("fk_rewrap_claims_rewraps"),
        ),
        sa.PrimaryKeyConstraint("claim", name=op.f("pk_rewrap_claims")),
    )
    op.create_index(
        op.f("ix_rewrap_claims_project_rewrap_expire_time_us"),
        "rewrap_claims",
        ["project", "rewrap", "expire_time_us"],
        unique=False,
    )
    op.create_table(
        "rewrap_failures",
        sa.Column("project", _ID, nullable=False),
        sa.Column("rewrap", _UID, nullable=False),
        sa.Column("model", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "rewrap"],
            ["rewraps.project", "rewraps.rewrap"],
            name=op.f("fk_rewrap_failures_rewraps"),
        ),
        sa.PrimaryKeyConstraint(
            "project", "rewrap", "model", "number", name=op.f("pk_rewrap_failures")
        ),
    )


def downgrade() -> None:
    op.drop_table("rewrap_failures")
    op.drop_index(op.f("ix_rewrap_claims_project_rewrap_expire_time_us"), "rewrap_claims")
    op.drop_table("rewrap_claims")
    op.drop_index(op.f("ix_rewraps_state"), "rewraps")
    op.drop_table("rewraps")
