"""Run by Alembic, on the connection that `migrate` opened."""

from alembic import context

from kms_service.adapters.database.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
