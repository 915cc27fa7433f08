"""State in a relational database: SQLAlchemy Core and Alembic."""

from kms_service.adapters.database.engine import EngineOptions
from kms_service.adapters.database.migrate import SchemaState, migrate, schema_state
from kms_service.adapters.database.sql_database import SqlDatabase

__all__ = ["EngineOptions", "SchemaState", "SqlDatabase", "migrate", "schema_state"]
