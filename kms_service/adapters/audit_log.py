"""The audit log: append-only, hash-chained, durable before any answer leaves.

Appenders hand their record to one writer thread and wait. It writes and syncs all that has
gathered meanwhile at once, so that many requests share one fdatasync.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kms_service.adapters.audit_chain import (
    Link,
    Verification,
    end_of,
    read_records,
    render,
    segment_name,
    segments,
    verify,
)
from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.errors import AuditUnavailable, ConfigurationError

__all__ = ["FileAuditLog", "Verification", "read_records", "verify"]


class AuditLogDamaged(ConfigurationError):
    """Records were changed, not torn: nothing is appended to a chain that does not hold."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the audit log is damaged in {path.name}; `modelkms-server audit verify` names the "
            "first bad record; move the folder aside to begin a new chain, and keep it"
        )


@dataclass(slots=True)
class _Waiting:
    """One record on its way. The raw lock is held until its fate is known."""

    record: AuditRecord
    done: _thread.LockType = field(default_factory=_thread.allocate_lock)
    durable: bool = False


class FileAuditLog:
    """Implements `domain.ports.AuditLog`. One process a folder; safe to use from many threads.

    Args:
        folder: made if missing, 0700.
        now: logical time, for what the log records of itself.
        sync: makes a descriptor's data durable; another one in tests of failing disks.

    Raises:
        ConfigurationError: another process has the folder, or it cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], datetime],
        *,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._folder = folder
        self._now = now
        self._sync = sync
        self._file: int | None = None
        self._last = Link()
        self._queue: list[_Waiting] = []
        self._gathered = threading.Condition()
        self._closing = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _exclusive(folder / "lock")
            self._recover()
        except OSError as error:
            raise ConfigurationError(f"audit.folder: cannot be used: {error.strerror}") from error
        self._writer = threading.Thread(target=self._write_groups, name="audit-log", daemon=True)
        self._writer.start()

    def append(self, record: AuditRecord) -> None:
        waiting = _Waiting(record)
        waiting.done.acquire()
        with self._gathered:
            if self._closing:
                raise AuditUnavailable
            self._queue.append(waiting)
            self._gathered.notify()
        waiting.done.acquire()
        if not waiting.durable:
            raise AuditUnavailable

    @property
    def last_sequence(self) -> int:
        """Number of the last durable record."""
        return self._last.sequence

    def close(self) -> None:
        """Write what waits, then close. Later appends are refused."""
        with self._gathered:
            self._closing = True
            self._gathered.notify()
        self._writer.join()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)

    # --- the writer thread ----------------------------------------------------------------------

    def _write_groups(self) -> None:
        while True:
            with self._gathered:
                while not self._queue and not self._closing:
                    self._gathered.wait()
                group, self._queue = self._queue, []
            if not group:
                return
            try:
                self._write([waiting.record for waiting in group])
                durable = True
            except (OSError, AuditLogDamaged):
                durable = False
            for waiting in group:
                waiting.durable = durable
                waiting.done.release()

    def _write(self, records: list[AuditRecord]) -> None:
        """Append and sync; on any error the file is closed and not believed any more.

        After a failed fsync the kernel may have dropped the pages and marked them clean: a second
        fsync would succeed and prove nothing. So what lies beyond the last durable record is set
        aside, and a new segment is begun.
        """
        if self._file is None:
            self._recover()
        try:
            self._append(records)
        except OSError:
            self._abandon()
            raise

    def _append(self, records: list[AuditRecord]) -> None:
        if self._file is None:
            raise OSError("no segment is open")
        lines, last = [], self._last
        for record in records:
            line, last = render(record, last)
            lines.append(line)
        _write_all(self._file, b"".join(lines))
        self._sync(self._file)
        self._last = last

    def _abandon(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # --- beginning, and beginning again -----------------------------------------------------------

    def _recover(self) -> None:
        """Go on after the last whole record, in a new segment; set a torn tail aside.

        Raises:
            AuditLogDamaged: what follows the last whole record is more than a torn line.
        """
        last, torn_bytes = Link(), 0
        for path in reversed(segments(self._folder)):
            found, tail = end_of(path)
            if b"\n" in tail:
                raise AuditLogDamaged(path)
            if tail:
                _set_aside(path, tail)
                torn_bytes += len(tail)
            if found is not None:
                last = found
                break
        self._last = last
        self._open_segment()
        if torn_bytes:
            self._append(
                [
                    AuditRecord(
                        time=self._now(),
                        event="audit_tail_set_aside",
                        outcome=Outcome.OK,
                        details={"bytes": str(torn_bytes)},
                    )
                ]
            )

    def _open_segment(self) -> None:
        path = self._folder / segment_name(self._last.sequence + 1)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        _sync_folder(self._folder)


def _exclusive(path: Path) -> int:
    """A lock that dies with us. Two processes would fork the chain."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigurationError(
            "audit.folder: another process writes there; give each process a folder of its own"
        ) from error
    return descriptor


def _set_aside(path: Path, tail: bytes) -> None:
    """Copy what follows the last whole record to a file beside, then cut it off."""
    number = 1
    while (aside := path.with_name(f"{path.name}.torn-{number}")).exists():
        number += 1
    aside.touch(mode=0o600)
    aside.write_bytes(tail)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - len(tail))
        os.fsync(file.fileno())


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
