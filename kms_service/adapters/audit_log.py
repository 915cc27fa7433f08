"""The audit log: append-only, hash-chained, durable before any answer leaves.

Appenders hand their record to one writer thread and wait. It writes and syncs all that has
gathered meanwhile at once, so that many requests share one fdatasync.

Both ways of waking are raw locks: an appender waits for its own, and the writer for one that is
released by whoever finds the queue empty. A condition variable would make such a lock at every
wait and pass through two more, in Python.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kms_service.adapters.audit_chain import Link, end_of, render, segment_name, segments
from kms_service.domain.audit import AuditRecord, ChainHead, Outcome
from kms_service.domain.errors import AuditUnavailable, ConfigurationError
from kms_service.telemetry.logging import get_logger

_log = get_logger(__name__)

DEFAULT_SEGMENT_BYTES = 64 * 1024 * 1024
_PAUSE_AFTER_FAILURE_S = 0.5
"""Between two attempts to begin again: a full disk must not be tried at every call."""


class AuditLogDamaged(ConfigurationError):
    """Records were changed, not torn: nothing is appended to a chain that does not hold."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the audit log is damaged in {path.name}; `modelkms-server audit verify` names the "
            "first bad record; move the folder aside to begin a new chain, and keep it"
        )


@dataclass(slots=True)
class _Waiting:
    """One record on its way, and who is told whether it is durable."""

    record: AuditRecord
    done: Callable[[bool], object]


class _Fate:
    """Of a record that somebody waits for. The raw lock is held until it is known."""

    __slots__ = ("_known", "durable")

    def __init__(self) -> None:
        self.durable = False
        self._known = _thread.allocate_lock()
        self._known.acquire()

    def tell(self, durable: bool) -> None:
        self.durable = durable
        self._known.release()

    def wait(self) -> None:
        self._known.acquire()


class FileAuditLog:
    """Implements `domain.ports.AuditLog`. One process a folder; safe to use from many threads.

    Args:
        folder: of this process's chain, which has its name; made if missing, 0700.
        now: logical time, for what the log records of itself.
        segment_bytes: a new file is begun once one is this long.
        gather_us: how long a group is waited for after its first record, in microseconds. With 0
            a group is what came while the one before was synced.
        tell: given each group's lines once they are durable. Called by the writer, so it must
            neither wait nor raise.
        sync: makes a descriptor's data durable; another one in tests of failing disks.

    Raises:
        ConfigurationError: another process has the folder, or it cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], datetime],
        *,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        gather_us: int = 0,
        tell: Callable[[list[bytes]], object] = lambda _lines: None,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._folder = folder
        self._now = now
        self._segment_bytes = segment_bytes
        self._gather_s = gather_us / 1e6
        self._tell = tell
        self._sync = sync
        self._file: int | None = None
        self._segment = folder
        self._durable_bytes = 0
        self._torn_bytes = 0
        self._last = Link()
        self._not_before = float("-inf")
        self._failing = False
        self._queue: list[_Waiting] = []
        self._queue_lock = _thread.allocate_lock()
        self._work = _thread.allocate_lock()
        self._work.acquire()
        self._closing = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _exclusive(folder / "lock")
            try:
                self._begin()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise ConfigurationError(f"audit.folder: cannot be used: {error.strerror}") from error
        self._writer = threading.Thread(target=self._write_groups, name="audit-log", daemon=True)
        self._writer.start()

    def append(self, record: AuditRecord) -> None:
        fate = _Fate()
        self.append_soon(record, fate.tell)
        fate.wait()
        if not fate.durable:
            raise AuditUnavailable

    def append_soon(self, record: AuditRecord, done: Callable[[bool], object]) -> None:
        with self._queue_lock:
            closing = self._closing
            if not closing:
                self._queue.append(_Waiting(record, done))
                if len(self._queue) == 1:
                    self._work.release()
        if closing:
            done(False)

    @property
    def chain(self) -> str:
        return self._folder.name

    @property
    def head(self) -> ChainHead | None:
        last = self._last
        return ChainHead(self.chain, last.sequence, last.hash) if last.sequence else None

    @property
    def failing(self) -> bool:
        """Whether the last group could not be made durable."""
        return self._failing

    @property
    def last_sequence(self) -> int:
        """Number of the last durable record."""
        return self._last.sequence

    @property
    def waiting(self) -> int:
        """Records handed over and not yet durable, those being written left out."""
        return len(self._queue)

    def close(self) -> None:
        """Write what waits, then close. Later appends are refused. Idempotent."""
        with self._queue_lock:
            if self._closing:
                return
            self._closing = True
            if not self._queue:
                self._work.release()
        self._writer.join()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)

    # --- the writer thread ----------------------------------------------------------------------

    def _write_groups(self) -> None:
        """`_work` is released by whoever makes the empty queue non-empty, and by `close` if it is
        empty: once for each time that there is something to do, so it is never released twice."""
        while True:
            self._work.acquire()
            if self._gather_s and not self._closing:
                time.sleep(self._gather_s)
            with self._queue_lock:
                group, self._queue = self._queue, []
                closing = self._closing
            if group:
                durable = self._write([waiting.record for waiting in group])
                self._failing = not durable
                for waiting in group:
                    waiting.done(durable)
            if closing:
                return

    def _write(self, records: list[AuditRecord]) -> bool:
        """Append and sync; on any error the file is closed and not believed any more."""
        try:
            if self._file is None:
                self._begin_again()
            self._append(records)
        except OSError as error:
            self._abandon()
            _log.error("audit_not_written", error=error.strerror or str(error))
            return False
        except Exception:
            # A bug: nothing is durable, and the appenders must not wait for ever.
            self._abandon()
            _log.exception("audit_not_written")
            return False
        return True

    def _append(self, records: list[AuditRecord]) -> None:
        if self._durable_bytes >= self._segment_bytes:
            self._abandon()
            self._open_segment()
        if self._file is None:
            raise OSError("no segment is open")
        lines, last = [], self._last
        for record in records:
            line, last = render(record, self.chain, last)
            lines.append(line)
        data = b"".join(lines)
        _write_all(self._file, data)
        self._sync(self._file)
        self._durable_bytes += len(data)
        self._last = last
        self._tell(lines)

    def _abandon(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # --- beginning, and beginning again -----------------------------------------------------------

    def _begin(self) -> None:
        """Go on after the last whole record, in a new segment; set a torn tail aside.

        Raises:
            AuditLogDamaged: what follows the last whole record is more than a torn line.
            OSError.
        """
        for path in reversed(segments(self._folder)):
            found, tail = end_of(path)
            if b"\n" in tail:
                raise AuditLogDamaged(path)
            if tail:
                _set_aside(path, tail)
                self._torn_bytes += len(tail)
            if found is not None:
                self._last = found
                break
        self._open_segment()
        self._record_torn()

    def _begin_again(self) -> None:
        """Go on after the last *durable* record, in a new segment; what follows is set aside.

        After a failed fsync the kernel may have dropped the pages and marked them clean: they can
        still be read back, a second fsync would succeed, and both would prove nothing.
        """
        if time.monotonic() < self._not_before:
            raise OSError("the audit folder could not be used a moment ago")
        self._not_before = time.monotonic() + _PAUSE_AFTER_FAILURE_S
        with self._segment.open("rb") as file:
            file.seek(self._durable_bytes)
            tail = file.read()
        if tail:
            _set_aside(self._segment, tail)
            self._torn_bytes += len(tail)
        if not self._durable_bytes:  # else the new segment would be this file, by its name
            self._segment.unlink()
        self._open_segment()
        self._record_torn()
        self._not_before = float("-inf")

    def _open_segment(self) -> None:
        self._segment = self._folder / segment_name(self._last.sequence + 1)
        self._durable_bytes = 0
        self._file = os.open(self._segment, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        _sync_folder(self._folder)

    def _record_torn(self) -> None:
        if not self._torn_bytes:
            return
        self._append(
            [
                AuditRecord(
                    time=self._now(),
                    event="audit_tail_set_aside",
                    outcome=Outcome.OK,
                    details={"bytes": str(self._torn_bytes)},
                )
            ]
        )
        self._torn_bytes = 0


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
    try:
        aside.touch(mode=0o600)
        aside.write_bytes(tail)
    except OSError:
        aside.unlink(missing_ok=True)  # else a full disk fills further, one file an attempt
        raise
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
