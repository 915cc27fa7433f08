"""Projects, models, versions, aliases, leases, clock

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
_UID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("mark_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clock")),
    )
    op.create_table(
        "leases",
        sa.Column("project", _ID, nullable=False),
        sa.Column("lease", _UID, nullable=False),
        sa.Column("model", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version_uid", _UID, nullable=False),
        sa.Column("principal", sa.String(length=2048), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("issue_time_us", sa.BigInteger(), nullable=False),
        sa.Column("expire_time_us", sa.BigInteger(), nullable=False),
        sa.Column("absolute_end_time_us", sa.BigInteger(), nullable=False),
        sa.Column("renewals", sa.Integer(), nullable=False),
        sa.Column("revoke_time_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("project", "lease", name=op.f("pk_leases")),
    )
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_leases_expire_time_us"), ["expire_time_us"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_leases_project_issue_time_us_lease"),
            ["project", "issue_time_us", "lease"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_leases_project_model_number"),
            ["project", "model", "number"],
            unique=False,
        )

    op.create_table(
        "projects",
        sa.Column("project", _ID, nullable=False),
        sa.Column("master_key", sa.String(length=255), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_projects")),
    )
    op.create_table(
        "models",
        sa.Column("project", _ID, nullable=False),
        sa.Column("model", _ID, nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["projects.project"], name=op.f("fk_models_projects")),
        sa.PrimaryKeyConstraint("project", "model", name=op.f("pk_models")),
    )
    op.create_table(
        "versions",
        sa.Column("project", _ID, nullable=False),
        sa.Column("model", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("uid", _UID, nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("publisher", sa.String(length=2048), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("artifact_id", _UID, nullable=False),
        sa.Column("wrapped_key", sa.Text(), nullable=False),
        sa.Column("master_key_version", sa.Integer(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("finalize_time_us", sa.BigInteger(), nullable=True),
        sa.Column("pin_length_bytes", sa.BigInteger(), nullable=True),
        sa.Column("pin_floe_header_tag", sa.LargeBinary(length=32), nullable=True),
        sa.Column("pin_digest", sa.LargeBinary(length=32), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "model"],
            ["models.project", "models.model"],
            name=op.f("fk_versions_models"),
        ),
        sa.PrimaryKeyConstraint("project", "model", "number", name=op.f("pk_versions")),
        sa.UniqueConstraint("artifact_id", name=op.f("uq_versions_artifact_id")),
        sa.UniqueConstraint(
            "project",
            "model",
            "publisher",
            "request_id",
            name=op.f("uq_versions_project_model_publisher_request_id"),
        ),
        sa.UniqueConstraint("uid", name=op.f("uq_versions_uid")),
    )
    with op.batch_alter_table("versions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_versions_project_master_key_version"),
            ["project", "master_key_version"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_versions_state_create_time_us"),
            ["state", "create_time_us"],
            unique=False,
        )

    op.create_table(
        "aliases",
        sa.Column("project", _ID, nullable=False),
        sa.Column("model", _ID, nullable=False),
        sa.Column("alias", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("update_time_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "model", "number"],
            ["versions.project", "versions.model", "versions.number"],
            name=op.f("fk_aliases_versions"),
        ),
        sa.PrimaryKeyConstraint("project", "model", "alias", name=op.f("pk_aliases")),
    )


def downgrade() -> None:
    op.drop_table("aliases")
    with op.batch_alter_table("versions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_versions_state_create_time_us"))
        batch_op.drop_index(batch_op.f("ix_versions_project_master_key_version"))

    op.drop_table("versions")
    op.drop_table("models")
    op.drop_table("projects")
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_leases_project_model_number"))
        batch_op.drop_index(batch_op.f("ix_leases_project_issue_time_us_lease"))
        batch_op.drop_index(batch_op.f("ix_leases_expire_time_us"))

    op.drop_table("leases")
    op.drop_table("clock")
