"""What `backup`, `restore` and `verify-state` do, on the configured parts."""

from __future__ import annotations

import heapq
import json
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.audit_reading import Reading
from kms_service.adapters.clock import LogicalClock
from kms_service.adapters.database import SqlDatabase
from kms_service.adapters.database.dump import read_backup, write_backup
from kms_service.adapters.vault import VaultMasterKeys
from kms_service.adapters.vault_tombstones import VaultTombstones
from kms_service.config import Config
from kms_service.console import CORRUPT, fail, say, tell
from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.backups import Backup
from kms_service.domain.errors import ConfigurationError, ServiceError
from kms_service.parts import database_options, migrate_database, open_database, open_vault_session
from kms_service.usecases.backup_registry import STARTED, WRITTEN, put_back, recorded_backups
from kms_service.usecases.verify_state import StateReport, VerifyState, recorded_states

_OURSELVES = "modelkms-server"
CHAIN = "commands"
"""Of the audit log: these commands run beside the service, which has a chain of its own."""


def back_up(settings: Config, file: Path) -> int:
    """How many rows were written to the new file.

    Registered before the snapshot, so that it is in the file, too; and until the end as one that
    may need any version of any master key. Killed in between, it stays so.
    """
    with _commands(settings) as parts:
        backup = Backup(
            secrets.token_hex(16),
            f"{socket.gethostname()}:{file.absolute()}",
            parts.clock.now(),
        )
        parts.record(STARTED, backup=backup.id, location=backup.location)
        parts.register(backup)
        try:
            rows, oldest = write_backup(
                settings.database.url, database_options(settings), file, parts.clock.now()
            )
        except ServiceError:
            # No such file is left behind: `write_backup` promises that.
            gone = backup.declare_destroyed(_OURSELVES, "was not written", parts.clock.now())
            parts.register(gone)
            raise
        parts.record(
            WRITTEN,
            backup=backup.id,
            location=backup.location,
            rows=str(rows),
            oldest_versions=json.dumps(dict(oldest), sort_keys=True),
        )
        parts.register(replace(backup, oldest_versions=oldest))
    return rows


def restore_rows(settings: Config, file: Path) -> int:
    """How many rows were put into the empty database. Not verified yet."""
    migrate_database(settings)
    rows = read_backup(settings.database.url, database_options(settings), file)
    with _commands(settings) as parts:
        parts.record("BackupRestored", file=file.name, rows=str(rows))
    return rows


def put_back_backups(settings: Config, audit: Path | None) -> int:
    """How many backups the audit log knows and the registry did not, or not wholly: those made
    since the one that was restored, and that one itself."""
    with _commands(settings) as parts:
        reading = Reading(audit or settings.audit.folder)
        entered = parts.put_back(recorded_backups(_records(reading)))
        if entered:
            parts.record("BackupsPutBack", backups=str(entered))
    return entered


def verify_rows(
    settings: Config, audit: Path | None, *, withhold: bool, keys: bool
) -> tuple[StateReport, list[str]]:
    """What was found, and what is wrong with the audit log it was held against."""
    with _commands(settings) as parts:
        reading = Reading(audit or settings.audit.folder)
        recorded = recorded_states(_records(reading))
        report = parts.verify(recorded, withhold=withhold, keys=keys)
        if withhold and parts.recount():
            parts.record("DataKeysRecounted")
            tell("counts", "of data keys were not what the database holds: counted anew")
    return report, [chain.summary for chain in reading.verification.chains if chain.fault]


def _records(reading: Reading) -> Iterator[Mapping[str, Any]]:
    """Of all chains, in order of time."""
    chains = [map(json.loads, chain.lines()) for chain in reading.chains]
    yield from heapq.merge(*chains, key=lambda record: str(record["time"]))


def tell_of(report: StateReport, faults: list[str]) -> None:
    """Say it; ends the process with 6 if anything was found."""
    for fault in faults:
        tell("audit", fault)
    for finding in report.findings:
        done = f": {finding.withheld}" if finding.withheld else ""
        tell("found", f"{finding.version} {finding.what}{done}")
    if report.unrecorded:
        tell("note", f"the audit log says nothing of {report.unrecorded} versions")
    summary = f"{report.versions} versions, {len(report.findings)} not as they must be"
    if report.findings or faults:
        fail(summary, "docs/guides/disasters.md", CORRUPT)
    say(summary)


class _Parts:
    """What these commands work with."""

    def __init__(
        self,
        database: SqlDatabase,
        verify: VerifyState,
        audit: FileAuditLog,
        clock: LogicalClock,
    ) -> None:
        self.clock = clock
        self._database = database
        self._verify = verify
        self._audit = audit

    @property
    def verify(self) -> Callable[..., StateReport]:
        return self._verify

    def register(self, backup: Backup) -> None:
        """Enter it in the registry, or what is new of it."""
        self._database.transact(lambda tx: tx.backups.put(backup))

    def put_back(self, backups: Iterable[Backup]) -> int:
        """See `backup_registry.put_back`."""
        return put_back(self._database, backups)

    def recount(self) -> bool:
        """See `SqlDatabase.recount_keys`."""
        return self._database.recount_keys()

    def record(self, event: str, **details: str) -> None:
        self._audit.append(
            AuditRecord(time=self.clock.now(), event=event, outcome=Outcome.OK, details=details)
        )


@contextmanager
def _commands(settings: Config) -> Iterator[_Parts]:
    """
    Raises:
        ConfigurationError: another of these commands runs, or its parts cannot be used.
    """
    if settings.audit.chain == CHAIN:
        raise ConfigurationError(f"audit.chain: {CHAIN} is for commands; choose another name")
    with (
        closing(open_database(settings)) as database,
        closing(open_vault_session(settings)) as session,
    ):
        clock = LogicalClock(database, wall=database.wall)
        audit = FileAuditLog(settings.audit.folder / CHAIN, clock.now)
        with closing(audit):
            verify = VerifyState(
                database=database,
                tombstones=VaultTombstones(session, settings.vault.kv_mount),
                rewrapper=VaultMasterKeys(session, settings.vault.transit_mount),
                audit=audit,
                clock=clock,
            )
            yield _Parts(database, verify, audit, clock)
