"""The registry of backups

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_UID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "backups",
        sa.Column("backup", _UID, nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("oldest_versions", sa.Text(), nullable=True),
        sa.Column("destroyed_by", sa.String(length=2048), nullable=False),
        sa.Column("destroy_reason", sa.String(length=1024), nullable=False),
        sa.Column("destroy_time_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("backup", name=op.f("pk_backups")),
    )
    with op.batch_alter_table("backups", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_backups_create_time_us_backup"),
            ["create_time_us", "backup"],
            unique=False,
        )


def downgrade() -> None:
    op.drop_table("backups")
