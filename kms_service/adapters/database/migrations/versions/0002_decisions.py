"""Decisions of policy, and last uses

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("permitted", sa.Boolean(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("policies", sa.Text(), nullable=False),
        sa.Column("epoch", sa.String(length=64), nullable=False),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.Column("redacted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    op.create_index(op.f("ix_decisions_time_us"), "decisions", ["time_us"])
    op.create_table(
        "access_uses",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("principal", sa.String(length=2048), nullable=False),
        sa.Column("action", sa.String(length=63), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("last_time_us", sa.BigInteger(), nullable=False),
        sa.Column("last_permit_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_access_uses")),
    )
    op.create_index(
        op.f("ix_access_uses_action_project_model"), "access_uses", ["action", "project", "model"]
    )
    op.create_index(op.f("ix_access_uses_last_time_us"), "access_uses", ["last_time_us"])


def downgrade() -> None:
    op.drop_table("access_uses")
    op.drop_table("decisions")
