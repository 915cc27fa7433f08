"""Decisions are kept a while, with what it takes to explain and to replay them.

They are no evidence (that is the audit log, written before an answer leaves) and no state: they
are written behind, in batches, so a crash may lose the last seconds. What is kept is bounded.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from kms_service.domain.decisions import AccessRequest, Circumstances, Decision, RecordedDecision
from kms_service.domain.errors import ServiceError
from kms_service.domain.identity import Claims, Principal
from kms_service.domain.ports import Database, PolicyEngine, Transaction

KEPT_DECISIONS = 50_000
KEPT_USES = 100_000
REDACTED = "(redacted)"

_MOST_PENDING = 10_000
_PRUNE_EVERY = 2_000
_AT_ONCE = 250
_SECRET = re.compile(
    r"secret|token|passw|passphrase|credential|api.?key|private|session|cookie|nonce|assertion",
    re.IGNORECASE,
)
"""Names of claims and attributes whose values are not kept."""


class DecisionJournal:
    """Remembers decisions; `flush` stores them. Safe to use from many threads."""

    def __init__(self, database: Database, dropped: Callable[[], object] = lambda: None) -> None:
        """`dropped`: called for each decision that is not kept, since too many came between two
        flushes."""
        self._database = database
        self._dropped = dropped
        self._lock = threading.Lock()
        self._refused: list[tuple[AccessRequest, Decision]] = []
        self._permitted: dict[object, tuple[AccessRequest, Decision, int]] = {}
        self._since_pruned = _PRUNE_EVERY

    def note(self, request: AccessRequest, decision: Decision) -> None:
        """Remember one. Refusals are kept one by one, since their ids were told; equal permits
        between two flushes become one record, under the id of the last."""
        with self._lock:
            if not decision.permitted:
                if len(self._refused) < _MOST_PENDING:
                    self._refused.append((request, decision))
                else:
                    self._dropped()
                return
            key = _without_time(request)
            _, _, before = self._permitted.get(key, (None, None, 0))
            if before or len(self._permitted) < _MOST_PENDING:
                self._permitted[key] = request, decision, before + 1
            else:
                self._dropped()

    def flush(self) -> int:
        """Store what was noted; how many records.

        Raises:
            StateUnavailable, StateConflict: what was not stored is noted still.
        """
        with self._lock:
            refused, self._refused = self._refused, []
            permitted, self._permitted = self._permitted, {}
        pending = [(*each, 1) for each in refused] + list(permitted.values())
        stored = 0
        try:
            while stored < len(pending):
                # In small transactions: leases are committed between them.
                self._store([_record(*each) for each in pending[stored : stored + _AT_ONCE]])
                stored = min(stored + _AT_ONCE, len(pending))
        except ServiceError:
            self._take_back(pending[stored:])
            raise
        return stored

    def _store(self, records: list[RecordedDecision]) -> None:
        self._since_pruned += len(records)
        prune = self._since_pruned >= _PRUNE_EVERY

        def work(tx: Transaction) -> None:
            tx.decisions.record(records)
            if prune:
                tx.decisions.prune(KEPT_DECISIONS, KEPT_USES)

        self._database.transact(work)
        if prune:
            self._since_pruned = 0

    def _take_back(self, pending: list[tuple[AccessRequest, Decision, int]]) -> None:
        for request, decision, repeats in pending:
            for _ in range(repeats):
                self.note(request, decision)


class JournaledPolicy:
    """A policy engine whose decisions are remembered."""

    def __init__(self, engine: PolicyEngine, journal: DecisionJournal) -> None:
        self._engine = engine
        self._journal = journal

    def decide(self, request: AccessRequest) -> Decision:
        decision = self._engine.decide(request)
        self._journal.note(request, decision)
        return decision


def _without_time(request: AccessRequest) -> object:
    resource, around = request.resource, request.circumstances
    return (
        request.principal,
        request.action,
        resource.project,
        resource.model,
        tuple(sorted(resource.labels.items())) if resource.labels else (),
        around.source,
        around.suite,
        around.client_version,
        tuple(sorted(around.attributes.items())) if around.attributes else (),
    )


def _record(request: AccessRequest, decision: Decision, repeats: int) -> RecordedDecision:
    kept = redacted(request)
    return RecordedDecision(
        id=decision.id,
        request=kept,
        permitted=decision.permitted,
        policies=decision.policies,
        epoch=decision.epoch,
        repeats=repeats,
        redacted=kept != request,
    )


def redacted(request: AccessRequest) -> AccessRequest:
    """`request` without the values of claims and attributes whose names sound like secrets."""
    around = request.circumstances
    return replace(
        request,
        principal=_redacted_principal(request.principal),
        circumstances=Circumstances(
            source=around.source,
            suite=around.suite,
            client_version=around.client_version,
            attributes=_redacted_map(around.attributes),
        ),
    )


def _redacted_principal(principal: Principal) -> Principal:
    claims: Claims = tuple(
        (name, (REDACTED,) if _SECRET.search(name) else values) for name, values in principal.claims
    )
    return replace(principal, claims=claims)


def _redacted_map(values: Mapping[str, str]) -> dict[str, str]:
    return {key: REDACTED if _SECRET.search(key) else value for key, value in values.items()}
