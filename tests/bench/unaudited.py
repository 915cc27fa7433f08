"""`modelkms-server` without an audit log, to measure what the log costs. For the bench only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kms_service import parts
from kms_service.__main__ import main
from kms_service.domain.audit import AuditRecord


class NoAuditLog:
    """In the place of `FileAuditLog`."""

    chain = "none"
    head = None
    last_sequence = 0
    waiting = 0

    def __init__(self, _folder: Path, _now: object, **_options: Any) -> None: ...

    def append(self, record: AuditRecord) -> None: ...

    def append_soon(self, record: AuditRecord, done: Callable[[bool], object]) -> None:
        done(True)

    def close(self) -> None: ...


if __name__ == "__main__":
    vars(parts)["FileAuditLog"] = NoAuditLog
    main()
