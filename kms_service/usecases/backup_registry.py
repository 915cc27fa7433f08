"""The registry of backups, kept by the command that makes them and by officers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from kms_service.domain.audit import Outcome
from kms_service.domain.backups import Backup
from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField
from kms_service.domain.identity import Caller
from kms_service.domain.names import SERVICE
from kms_service.domain.ports import Clock, Database, Page, Transaction
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.paging import check_page_size

STARTED, WRITTEN = "BackupStarted", "BackupWritten"
"""Events of the audit log that a lost registry is put together from."""
_PREFIX = "backups/"
_ID = re.compile(r"[0-9a-f]{32}")


class BackupRegistry:
    """Officers' side."""

    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def list(self, caller: Caller, page_size: int, page_token: str) -> Page[Backup]:
        """Newest first; also those declared destroyed.

        Raises:
            InvalidField: `page_size` or `page_token`.
            ModelNotFoundOrDenied: not permitted.
        """
        size = check_page_size(page_size)
        with self._gate.admit(caller, Action.LIST_BACKUPS, SERVICE) as permit:
            with self._database.read() as tx:
                page = tx.backups.list(size, page_token)
            permit.record(items=len(page.items))
            return page

    def declare_destroyed(self, caller: Caller, name: str, reason: str) -> Backup:
        """An officer's word that every copy is gone; nothing here can check it. Once more changes
        nothing.

        Args:
            name: `backups/{id}`.

        Raises:
            InvalidField: `name` or `reason`.
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        backup_id = name.removeprefix(_PREFIX)
        if not name.startswith(_PREFIX) or _ID.fullmatch(backup_id) is None:
            raise InvalidField("name", "must be backups/{backup}")
        if not reason.strip():
            raise InvalidField("reason", "must say how it is known that every copy is gone")
        now = self._clock.now()
        with self._gate.admit(caller, Action.DECLARE_BACKUP_DESTROYED, SERVICE) as permit:

            def declare(tx: Transaction) -> Backup:
                backup = permit.require(tx.backups.get(backup_id))
                destroyed = backup.declare_destroyed(caller.principal.id, reason, now)
                tx.backups.put(destroyed)
                permit.record(backup=backup_id, location=backup.location, why=reason)
                return destroyed

            return self._database.transact(declare)


def recorded_backups(records: Iterable[Mapping[str, Any]]) -> list[Backup]:
    """Every backup that the audit log knows, as it was when it was made.

    Args:
        records: of all chains, in order of time.
    """
    found: dict[str, Backup] = {}
    for record in records:
        details = record.get("details") or {}
        backup_id = details.get("backup", "")
        if record.get("outcome") != Outcome.OK.value or _ID.fullmatch(backup_id) is None:
            continue
        if record["event"] == STARTED:
            time = datetime.fromisoformat(record["time"])
            found[backup_id] = Backup(backup_id, details["location"], time)
        elif record["event"] == WRITTEN and backup_id in found:
            oldest = json.loads(details["oldest_versions"])
            found[backup_id] = replace(found[backup_id], oldest_versions=oldest)
    return list(found.values())


def put_back(database: Database, recorded: Iterable[Backup]) -> int:
    """Enter what is recorded and not (or not wholly) in the registry; how many. A backup that was
    declared destroyed since the one that was restored counts again, until it is declared so anew:
    rather one word too many than a key trimmed too early."""
    backups = list(recorded)

    def enter(tx: Transaction) -> int:
        entered = 0
        for backup in backups:
            known = tx.backups.get(backup.id)
            if known is None:
                tx.backups.put(backup)
            elif known.oldest_versions is None and backup.oldest_versions is not None:
                tx.backups.put(replace(known, oldest_versions=backup.oldest_versions))
            else:
                continue
            entered += 1
        return entered

    return database.transact(enter)
