"""Trims of master keys that wait for a second officer

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ID = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "trims",
        sa.Column("master_key", sa.String(length=255), nullable=False),
        sa.Column("project", _ID, nullable=False),
        sa.Column("oldest_version", sa.Integer(), nullable=False),
        sa.Column("requested_by", sa.String(length=2048), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("expire_time_us", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_by", sa.String(length=2048), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["projects.project"], name=op.f("fk_trims_projects")),
        sa.PrimaryKeyConstraint("master_key", name=op.f("pk_trims")),
    )


def downgrade() -> None:
    op.drop_table("trims")
