"""Milestones: what happens once

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "milestones",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_milestones")),
    )


def downgrade() -> None:
    op.drop_table("milestones")
