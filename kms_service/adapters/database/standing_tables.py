"""Blocked principals and frozen projects."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Row, bindparam, delete, insert, or_, select, update

from kms_service.adapters.database import schema
from kms_service.adapters.database.pages import decode_token, encode_token, page_of
from kms_service.adapters.database.prepared import Prepared
from kms_service.adapters.database.seen import look_once
from kms_service.adapters.database.times import from_us, to_us
from kms_service.domain.names import ProjectName
from kms_service.domain.ports import Page
from kms_service.domain.standing import Block, Freeze

# Of every lease (see `prepared`).
_BLOCK = Prepared(select(schema.blocks).where(schema.blocks.c.principal == bindparam("principal")))
_FREEZE = Prepared(select(schema.freezes).where(schema.freezes.c.project == bindparam("project")))


class SqlBlockTable:
    """Implements `domain.ports.BlockTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, principal: str) -> Block | None:
        return look_once(self._connection, ("block", principal), lambda: self._look(principal))

    def _look(self, principal: str) -> Block | None:
        row = _BLOCK.one(self._connection, {"principal": principal})
        return _block(row) if row is not None else None

    def put(self, block: Block) -> None:
        self.delete(block.principal)
        self._connection.execute(
            insert(schema.blocks).values(
                principal=block.principal,
                reason=block.reason,
                blocked_by=block.blocked_by,
                create_time_us=to_us(block.create_time),
                until_us=to_us(block.until) if block.until is not None else None,
            )
        )

    def delete(self, principal: str) -> bool:
        table = schema.blocks
        gone = self._connection.execute(delete(table).where(table.c.principal == principal))
        return bool(gone.rowcount)

    def list(self, now: datetime, page_size: int, page_token: str) -> Page[Block]:
        table = schema.blocks
        query = (
            select(table)
            .where(or_(table.c.until_us.is_(None), table.c.until_us > to_us(now)))
            .order_by(table.c.principal)
            .limit(page_size + 1)
        )
        if (after := decode_token(page_token, str)) is not None:
            query = query.where(table.c.principal > after[0])
        items = [_block(row) for row in self._connection.execute(query)]
        return page_of(items, page_size, lambda block: encode_token(block.principal))


class SqlFreezeTable:
    """Implements `domain.ports.FreezeTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: ProjectName) -> Freeze | None:
        return look_once(self._connection, ("freeze", name), lambda: self._look(name))

    def _look(self, name: ProjectName) -> Freeze | None:
        row = _FREEZE.one(self._connection, {"project": name.project})
        return _freeze(row) if row is not None else None

    def put(self, freeze: Freeze) -> None:
        self.delete(freeze.project)
        self._connection.execute(
            insert(schema.freezes).values(
                project=freeze.project.project,
                reason=freeze.reason,
                frozen_by=freeze.frozen_by,
                create_time_us=to_us(freeze.create_time),
            )
        )

    def delete(self, name: ProjectName) -> bool:
        table = schema.freezes
        gone = self._connection.execute(delete(table).where(table.c.project == name.project))
        return bool(gone.rowcount)

    def list(self, page_size: int, page_token: str) -> Page[Freeze]:
        table = schema.freezes
        query = select(table).order_by(table.c.project).limit(page_size + 1)
        if (after := decode_token(page_token, str)) is not None:
            query = query.where(table.c.project > after[0])
        items = [_freeze(row) for row in self._connection.execute(query)]
        return page_of(items, page_size, lambda freeze: encode_token(freeze.project.project))


def next_revocation(connection: Connection) -> int:
    """The next number; whoever takes it holds the row until commit, so that numbers are seen in
    their order, on every database."""
    table = schema.revocations
    raised = connection.execute(update(table).where(table.c.id == 1).values(last=table.c.last + 1))
    if not raised.rowcount:  # no migration put it there
        connection.execute(insert(table).values(id=1, last=1))
    return last_revocation(connection)


def last_revocation(connection: Connection) -> int:
    table = schema.revocations
    return connection.execute(select(table.c.last).where(table.c.id == 1)).scalar_one_or_none() or 0


def _block(row: Row[tuple[object, ...]]) -> Block:
    return Block(
        principal=row.principal,
        reason=row.reason,
        blocked_by=row.blocked_by,
        create_time=from_us(row.create_time_us),
        until=from_us(row.until_us) if row.until_us is not None else None,
    )


def _freeze(row: Row[tuple[object, ...]]) -> Freeze:
    return Freeze(
        project=ProjectName(row.project),
        reason=row.reason,
        frozen_by=row.frozen_by,
        create_time=from_us(row.create_time_us),
    )
