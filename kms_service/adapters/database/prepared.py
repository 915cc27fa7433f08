"""Statements of every lease: built once, and on SQLite handed to its driver as they are.

SQLite answers such a statement in two microseconds; SQLAlchemy's way there and back takes twenty
to a hundred, and sixteen threads wait for it. What it would add is not needed here: the statements
have one shape, the columns' types are SQLite's own.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Insert, Select
from sqlalchemy.dialects import sqlite

from kms_service.adapters.database.seen import seen_of

Values = Mapping[str, object]


class Prepared:
    """A statement with named parameters. Safe to use from many threads.

    Args:
        columns: that an INSERT gives values for.
    """

    def __init__(
        self, statement: Select[Any] | Insert, columns: Sequence[str] | None = None
    ) -> None:
        self._statement = statement
        dialect = sqlite.dialect(paramstyle="qmark")
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        self._sql = str(compiled)
        self._parameters: Sequence[str] = compiled.positiontup or ()
        columns_read = statement.selected_columns.keys() if isinstance(statement, Select) else ()
        self._row_of = _rows_with(columns_read)

    def one(self, connection: Connection, values: Values) -> Any | None:
        """The only row, its columns as attributes; None if there is none.

        Raises:
            sqlalchemy.exc.DatabaseError: here, and of every method.
        """
        rows = self.all(connection, values)
        assert len(rows) <= 1
        return rows[0] if rows else None

    def all(self, connection: Connection, values: Values) -> Sequence[Any]:
        seen = seen_of(connection)
        if seen is None:
            return connection.execute(self._statement, values).all()
        return [*map(self._row_of, seen.driver.run(self._sql, self._in_order(values)))]

    def run(self, connection: Connection, values: Values) -> None:
        """Of an INSERT."""
        seen = seen_of(connection)
        if seen is None:
            connection.execute(self._statement, values)
        else:
            seen.driver.run(self._sql, self._in_order(values))

    def _in_order(self, values: Values) -> Sequence[object]:
        return [values[name] for name in self._parameters]


def _rows_with(columns: Sequence[str]) -> Callable[[Sequence[Any]], Any]:
    """Makes rows whose columns are attributes, as SQLAlchemy's are."""
    made = namedtuple("Row", columns)  # type: ignore[misc]  # the statement names them
    make: Callable[[Sequence[Any]], Any] = made._make
    return make
