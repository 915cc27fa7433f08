"""What both databases have in common: how a transaction is asked for, and what errors mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from kms_service.domain.errors import ConfigurationError, ServiceError, StateUnavailable
from kms_service.domain.ports import Wake

T = TypeVar("T")

SQLITE, POSTGRESQL = "sqlite:///", "postgresql://"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to connect.

    Attributes:
        connections: open at most; who needs one more waits, then gets StateUnavailable.
        statement_timeout_s: a statement that takes longer is ended (PostgreSQL).
        password_file, ca_file: see `kms_service.config.DatabaseSection` (PostgreSQL).
    """

    connections: int = 16
    statement_timeout_s: float = 5.0
    password_file: Path | None = None
    ca_file: Path | None = None


class Transactions(Protocol):
    """Transactions on one engine. Safe to use from many threads."""

    engine: Engine

    def read(self) -> AbstractContextManager[Connection]:
        """A consistent snapshot.

        Raises:
            StateUnavailable, StateCorrupt.
        """

    def write(self) -> AbstractContextManager[Connection]:
        """A serializable transaction, committed durably at the end of the block.

        Raises:
            StateUnavailable, StateCorrupt.
            StateConflict: lost against another transaction; nothing was changed.
        """

    def transact(
        self, work: Callable[[Connection], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        """`work` in such a transaction; the whole of it again while it loses against others. For
        `then` see `domain.ports.Database.transact`.

        Raises: as `write`, and what `work` raises.
        """

    def look(self, work: Callable[[Connection], T]) -> T:
        """`work`, which writes nothing, in a consistent snapshot that was begun after this call;
        it may be shared with others who came meanwhile. `work` may run in another thread.

        Raises: as `read`, and what `work` raises.
        """

    def locking(self) -> AbstractContextManager[Connection]:
        """A transaction that locks what it goes by, or compares before it swaps: it sees what is
        committed statement by statement, and neither loses nor makes others lose.

        Raises: as `write`.
        """

    def alone(self, what: int) -> AbstractContextManager[bool]:
        """Whether no other process is in such a block for `what` (31 bits); it is kept out until
        the end of this one, or until the database loses sight of this process.

        Raises:
            StateUnavailable, StateCorrupt.
        """

    def rewrite(self) -> None:
        """Write what holds wrapped keys anew from its live rows, so that deleted ones are in none
        of the database's data files afterwards. Callers wait meanwhile.

        Raises:
            StateUnavailable: somebody still reads what was before; call again.
            StateCorrupt.
        """

    def close(self) -> None:
        """Let go of all connections."""

    def upgrade(self) -> AbstractContextManager[Connection]:
        """A transaction that changes the schema; of many that begin one, one runs at a time.

        Raises: as `write`.
        """


def transactions_of(url: str, options: EngineOptions) -> Transactions:
    """
    Raises:
        ConfigurationError: not a database of ours, or not one to trust with keys.
    """
    if url.startswith(SQLITE):
        from kms_service.adapters.database.sqlite import SqliteTransactions

        return SqliteTransactions(url, options)
    if url.startswith(POSTGRESQL):
        try:
            from kms_service.adapters.database.postgresql import PostgresqlTransactions
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"database.url: PostgreSQL needs {error.name}: "
                "pip install 'modelkms-server[postgresql]'"
            ) from error
        return PostgresqlTransactions(url, options)
    raise ConfigurationError("database.url: must be sqlite:///FILE or postgresql://USER@HOST/NAME")


@contextmanager
def translated(meaning_of: Callable[[DatabaseError], ServiceError]) -> Iterator[None]:
    """Database errors become domain errors."""
    try:
        yield
    except DatabaseError as error:
        raise meaning_of(error) from error
    except PoolTimeout as error:  # no connection in time
        raise StateUnavailable from error
