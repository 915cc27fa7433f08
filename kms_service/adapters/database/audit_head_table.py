"""Heads of audit chains."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select

from kms_service.adapters.database import schema
from kms_service.domain.audit import ChainHead

_HEADS = schema.audit_heads


class SqlAuditHeadTable:
    """Implements `domain.ports.AuditHeadTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, head: ChainHead) -> None:
        self._connection.execute(delete(_HEADS).where(_HEADS.c.chain == head.chain))
        self._connection.execute(
            insert(_HEADS).values(chain=head.chain, records=head.records, hash=head.hash)
        )

    def list(self) -> Sequence[ChainHead]:
        rows = self._connection.execute(select(_HEADS).order_by(_HEADS.c.chain))
        return [ChainHead(row.chain, row.records, row.hash) for row in rows]
