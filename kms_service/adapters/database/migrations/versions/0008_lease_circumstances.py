"""Leases keep the key-transport suite and the attributes that they were issued under

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Defaults, so that replicas of the release before can go on writing leases meanwhile.
    op.add_column("leases", sa.Column("suite", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("leases", sa.Column("attributes", sa.Text(), nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("leases", "attributes")
    op.drop_column("leases", "suite")
