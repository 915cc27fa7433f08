"""Audit logs for tests: records, chains of them, checkpoints signed by a key of the test's own."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.cedar_policy_set import PolicyFiles
from kms_service.adapters.signed_note import VerifierKey, sealed_note
from kms_service.domain.audit import AuditRecord, ChainHead, Checkpoint, Outcome
from kms_service.usecases.record_policies import RecordPolicies
from tests.support.usecase_fakes import ManualClock, MemoryAudit

NOON = datetime(2026, 11, 17, 12, tzinfo=UTC)
ORIGIN = "kms.example.org/audit"
POLICIES = PolicyFiles(
    policies={
        "readers.cedar": """
// Whoever runs a robot.
@id("readers")
permit (
  principal in ModelKMS::Group::"robots",
  action == ModelKMS::Action::"LeaseDataKey",
  resource
);
"""
    },
    canaries="{}",
    groups='{"groups": {"robots": ["spiffe://example.org/reader"]}}',
)
"""The set by which `lease_record` was permitted."""


def lease_record(number: int, **changes: Any) -> AuditRecord:
    """Lease number `number`, `number` minutes past noon, for an hour, of `models/face`."""
    time = NOON + timedelta(minutes=number)
    fields: dict[str, Any] = {
        "time": time,
        "event": "LeaseDataKey",
        "outcome": Outcome.OK,
        "request_id": f"{number:032x}",
        "principal": "spiffe://example.org/reader",
        "instance": "ab" * 32,
        "peer": "ipv4:192.0.2.7:50000",
        "resource": "projects/camera/models/face",
        "decision_id": f"{number:032x}",
        "policies": ("readers",),
        "policy_epoch": POLICIES.epoch,
        "details": {
            "version": "projects/camera/models/face/versions/3",
            "version_uid": "cd" * 16,
            "lease": f"projects/camera/leases/{number:032x}",
            "expire_time": (time + timedelta(hours=1)).isoformat(),
        },
    }
    return AuditRecord(**{**fields, **changes})


def policy_records(files: PolicyFiles = POLICIES) -> list[AuditRecord]:
    """As a service records the set at its start."""
    audit = MemoryAudit()
    RecordPolicies(audit=audit, clock=ManualClock())(files.epoch, files.named)
    return audit.records


def write_chain(folder: Path, records: Iterable[AuditRecord], **options: Any) -> ChainHead:
    """Append to a chain; where it stands then."""
    log = FileAuditLog(folder, lambda: NOON, **options)
    try:
        for record in records:
            log.append(record)
        head = log.head
    finally:
        log.close()
    assert head is not None
    return head


class Signer:
    """Implements `domain.ports.NoteSigner` without a Vault."""

    def __init__(self, name: str = ORIGIN) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.verifier = VerifierKey(name, self._key.public_key().public_bytes_raw())

    def sign(self, text: str) -> bytes:
        return sealed_note(text, self.verifier, self._key.sign(text.encode()))


def checkpoint(*heads: ChainHead, minutes: int = 60) -> Checkpoint:
    return Checkpoint(ORIGIN, NOON + timedelta(minutes=minutes), heads)
