"""The world around a use case, under the tests' control: time, policy, audit, Vault's side, and
what happens in the middle of a call. State and artifacts are the real adapters."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.decisions import AccessRequest, Action, Circumstances, Decision
from kms_service.domain.destruction import Tombstone
from kms_service.domain.errors import (
    AuditUnavailable,
    DeadlineExceeded,
    PolicyUnavailable,
    ServiceError,
)
from kms_service.domain.identity import Caller, Principal
from kms_service.domain.leases import LeaseBounds
from kms_service.domain.ports import (
    ArtifactStore,
    ArtifactWriter,
    Database,
    MasterKeys,
    MasterKeyState,
    Transaction,
    Wake,
)
from kms_service.domain.secret import SecretBytes

HOUR = timedelta(hours=1)

T = TypeVar("T")


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self._now = datetime(2030, 1, 1, tzinfo=UTC)
        self._served = timedelta(0)

    def now(self) -> datetime:
        return self._now

    def served(self) -> timedelta:
        return self._served

    def advance(self, by: timedelta) -> None:
        """Time goes on, and the service is running."""
        self._now += by
        self._served += by

    def jump(self, by: timedelta) -> None:
        """The wall clock was set forward while the service was down."""
        self._now += by


def caller(name: str, *, instance: str | None = None) -> Caller:
    """One call of `spiffe://demo.example/{name}`."""
    principal = Principal(
        id=f"spiffe://demo.example/{name}",
        trust_domain="demo.example",
        path=f"/{name}",
        instance=instance or f"{sum(name.encode()):064x}",
    )
    return Caller(principal, secrets.token_hex(16), "ipv4:127.0.0.1:5", "/test/Method")


@dataclass
class ScriptedPolicy:
    """Permits what was granted: (principal path, action, model or None for all of any project)."""

    bounds: LeaseBounds = field(default_factory=lambda: LeaseBounds(HOUR, 12 * HOUR))
    grants: set[tuple[str, Action, str | None]] = field(default_factory=set)
    asked: list[AccessRequest] = field(default_factory=list)
    available: bool = True
    needs_label: tuple[str, str] | None = None
    needs: Callable[[Circumstances], bool] = lambda around: True
    """What the circumstances must be, for every permit."""

    def grant(self, name: str, *actions: Action, model: str | None = None) -> None:
        self.grants |= {(f"/{name}", action, model) for action in actions}

    def withdraw(self, name: str, *actions: Action) -> None:
        self.grants = {
            grant for grant in self.grants if grant[0] != f"/{name}" or grant[1] not in actions
        }

    def decide(self, request: AccessRequest) -> Decision:
        if not self.available:
            raise PolicyUnavailable
        self.asked.append(request)
        resource = request.resource
        permitted = any(
            (request.principal.path, request.action, model) in self.grants
            for model in (None, resource.model)
        )
        if self.needs_label is not None and resource.model is not None:
            key, value = self.needs_label
            permitted = permitted and resource.labels.get(key) == value
        permitted = permitted and self.needs(request.circumstances)
        policies = ("granted",) if permitted else ()
        return Decision(secrets.token_hex(16), permitted, policies, self.bounds)


@dataclass
class MemoryAudit:
    """Keeps what is recorded; `broken` says which records cannot be written."""

    records: list[AuditRecord] = field(default_factory=list)
    broken: Callable[[AuditRecord], bool] = lambda record: False

    def append(self, record: AuditRecord) -> None:
        if self.broken(record):
            raise AuditUnavailable
        self.records.append(record)

    def append_soon(self, record: AuditRecord, done: Callable[[bool], object]) -> None:
        try:
            self.append(record)
        except AuditUnavailable:
            done(False)
        else:
            done(True)

    def take(self) -> list[AuditRecord]:
        """What was recorded since the last time."""
        taken, self.records = self.records, []
        return taken

    def outcomes(self) -> list[tuple[str, Outcome, str]]:
        return [(record.event, record.outcome, record.reason) for record in self.take()]


@dataclass
class Waiting:
    """A caller who waits for so many checks (None: for ever)."""

    checks: int | None = None
    seen: int = 0

    def check(self) -> None:
        self.seen += 1
        if self.checks is not None and self.seen > self.checks:
            raise DeadlineExceeded


@dataclass
class WatchedMasterKeys:
    """Counts the calls; `meanwhile` runs within each."""

    inner: MasterKeys
    calls: list[str] = field(default_factory=list)
    meanwhile: Callable[[], object] | None = None
    kept: dict[str, SecretBytes] = field(default_factory=dict)
    """Data keys in memory, by their wrapped form."""

    def _watch(self, call: str) -> None:
        self.calls.append(call)
        if self.meanwhile is not None:
            action, self.meanwhile = self.meanwhile, None
            action()

    def generate_data_key(
        self, master_key: str, context: bytes
    ) -> tuple[SecretBytes, WrappedDataKey]:
        self._watch("generate_data_key")
        return self.inner.generate_data_key(master_key, context)

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        self._watch("unwrap")
        return self.inner.unwrap(master_key, wrapped, context)

    def in_memory(
        self, master_key: str, wrapped: WrappedDataKey, context: bytes
    ) -> SecretBytes | None:
        """What the test put there."""
        return self.kept.get(wrapped.ciphertext)

    def describe(self, master_key: str) -> MasterKeyState:
        self._watch("describe")
        return self.inner.describe(master_key)

    def probe(self) -> None:
        self.inner.probe()


@dataclass
class WatchedStore:
    """A store in which something happens `after_reading` or `before_publishing`."""

    inner: ArtifactStore
    signs: bool = False
    before_publishing: Callable[[], None] | None = None
    deleted: list[str] = field(default_factory=list)

    def stored_bytes(self, artifact_id: str) -> int | None:
        return self.inner.stored_bytes(artifact_id)

    def resume(self, artifact_id: str, offset_bytes: int) -> AbstractContextManager[ArtifactWriter]:
        return self.inner.resume(artifact_id, offset_bytes)

    def read(self, artifact_id: str, offset_bytes: int, length_bytes: int) -> Iterator[bytes]:
        return self.inner.read(artifact_id, offset_bytes, length_bytes)

    def publish(self, artifact_id: str) -> None:
        if self.before_publishing is not None:
            action, self.before_publishing = self.before_publishing, None
            action()
        self.inner.publish(artifact_id)

    def delete(self, artifact_id: str) -> None:
        self.deleted.append(artifact_id)
        self.inner.delete(artifact_id)

    def link(self, artifact_id: str, valid_for: timedelta) -> str | None:
        if not self.signs:
            return self.inner.link(artifact_id, valid_for)
        return f"https://store.example/{artifact_id}?for={valid_for.total_seconds():.0f}"

    def stored_before(self, time: datetime) -> Iterator[str]:
        return self.inner.stored_before(time)

    def probe(self) -> None:
        self.inner.probe()


@dataclass
class WatchedDatabase:
    """A database whose next transactions `fail`, each with the error given (None: it works)."""

    inner: Database
    served: Callable[[], timedelta]
    fail_writes: list[Exception | None] = field(default_factory=list)
    before_write: Callable[[], None] | None = None

    def read(self) -> AbstractContextManager[Transaction]:
        return self.inner.read()

    def write(self) -> AbstractContextManager[Transaction]:
        if self.before_write is not None:
            action, self.before_write = self.before_write, None
            action()
        if self.fail_writes:
            error = self.fail_writes.pop(0)
            if error is not None:
                raise error
        return self.inner.write()

    def transact(
        self, work: Callable[[Transaction], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        with self.write() as transaction:
            result = work(transaction)
        if then is not None:
            woken = threading.Event()
            then(result, woken.set)
            assert woken.wait(30)
        return result

    def look(self, work: Callable[[Transaction], T]) -> T:
        return self.inner.look(work)

    def served_time(self) -> timedelta:
        return self.served()

    def scrub(self, *, again: bool = False) -> bool:
        return self.inner.scrub(again=again)

    def probe(self) -> None:
        self.inner.probe()


@dataclass
class MemoryTombstones:
    """Implements `domain.ports.Tombstones`; `fail_with` makes every call an outage."""

    kept: dict[str, Tombstone] = field(default_factory=dict)
    fail_with: type[ServiceError] | None = None

    def write(self, tombstone: Tombstone) -> None:
        self._fail()
        self.kept.setdefault(tombstone.uid, tombstone)

    def uids(self) -> frozenset[str]:
        self._fail()
        return frozenset(self.kept)

    def holds(self, uid: str) -> bool:
        return uid in self.kept

    def _fail(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with


@dataclass
class RewrapCounts:
    """Implements `RewrapCounters`."""

    counts: dict[str, int] = field(default_factory=dict)

    def rewrapped(self, keys: int) -> None:
        self._count("rewrapped", keys)

    def skipped(self, keys: int) -> None:
        self._count("skipped", keys)

    def failed(self, keys: int) -> None:
        self._count("failed", keys)

    def _count(self, what: str, keys: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + keys
