"""Scheduled destruction of versions, and the time that the service has been running

Revision ID: 0005
Revises: 0004

A service of the version before goes on meanwhile: every column is NULL or has a default.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ON_VERSIONS = (
    ("destroy_scheduled_by", sa.String(length=2048)),
    ("destroy_confirmed_by", sa.String(length=2048)),
    ("destroy_due_us", sa.BigInteger()),
    ("destroy_due_served_us", sa.BigInteger()),
    ("destroy_artifact", sa.Boolean()),
    ("destroy_time_us", sa.BigInteger()),
)
_ON_CLOCK = ("served_us", "scrubbed_versions")


def upgrade() -> None:
    for name, kind in _ON_VERSIONS:
        op.add_column("versions", sa.Column(name, kind, nullable=True))
    for name in _ON_CLOCK:
        op.add_column("clock", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    for name in _ON_CLOCK:
        op.drop_column("clock", name)
    for name, _ in _ON_VERSIONS:
        op.drop_column("versions", name)
