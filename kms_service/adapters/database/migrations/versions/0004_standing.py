"""Blocked principals, frozen projects, numbered revocations

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# PostgreSQL compares them by bytes, as SQLite does.
_ID = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
_PRINCIPAL = sa.String(2048).with_variant(sa.String(2048, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "blocks",
        sa.Column("principal", _PRINCIPAL, nullable=False),
        sa.Column("reason", sa.String(length=1024), nullable=False),
        sa.Column("blocked_by", sa.String(length=2048), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("principal", name=op.f("pk_blocks")),
    )
    op.create_table(
        "freezes",
        sa.Column("project", _ID, nullable=False),
        sa.Column("reason", sa.String(length=1024), nullable=False),
        sa.Column("frozen_by", sa.String(length=2048), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["projects.project"], name=op.f("fk_freezes_projects")
        ),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_freezes")),
    )
    revocations = op.create_table(
        "revocations",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revocations")),
    )
    op.bulk_insert(revocations, [{"id": 1, "last": 0}])
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.add_column(sa.Column("revocation", sa.BigInteger(), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_leases_revocation"),
            ["revocation"],
            unique=False,
            sqlite_where=sa.text("revocation IS NOT NULL"),
            postgresql_where=sa.text("revocation IS NOT NULL"),
        )
        batch_op.create_index(
            batch_op.f("ix_leases_principal_project_model"),
            ["principal", "project", "model"],
            unique=False,
        )


def downgrade() -> None:
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_leases_principal_project_model"))
        batch_op.drop_index(batch_op.f("ix_leases_revocation"))
        batch_op.drop_column("revocation")
    op.drop_table("revocations")
    op.drop_table("freezes")
    op.drop_table("blocks")
