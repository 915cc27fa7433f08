"""Audit checkpoints in time: shipped every minute and at the end, counted, their age told."""

from __future__ import annotations

from datetime import datetime

from kms_service.domain.audit import Checkpoint
from kms_service.domain.errors import ServiceError
from kms_service.domain.ports import AuditChain
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics import Metrics
from kms_service.timers import Timer
from kms_service.usecases.checkpoint_audit import CheckpointAudit

_log = get_logger(__name__)


class AuditCheckpoints:
    """Ships, and knows how far what was shipped lags behind."""

    def __init__(
        self, ship: CheckpointAudit, chain: AuditChain, every_s: float, metrics: Metrics
    ) -> None:
        self._ship = ship
        self._chain = chain
        self._count = metrics.audit_checkpoints
        self._last: Checkpoint | None = None
        self.every_s = every_s
        self.timer = Timer("audit-checkpoint", every_s, self.ship)
        metrics.observe_gauge(
            "modelkms_audit_checkpoint_timestamp_seconds",
            "When the last checkpoint was shipped (Unix time); absent before the first",
            lambda: self.last_time.timestamp() if self.last_time is not None else None,
        )
        metrics.observe_gauge(
            "modelkms_audit_unproven_records",
            "Records of this process's chain that no shipped checkpoint vouches for yet",
            lambda: float(self.unproven_records),
        )

    @property
    def last_time(self) -> datetime | None:
        return self._last.time if self._last is not None else None

    @property
    def unproven_records(self) -> int:
        head, last = self._chain.head, self._last
        if head is None:
            return 0
        proven = {seen.chain: seen.records for seen in last.heads} if last is not None else {}
        return head.records - proven.get(head.chain, 0)

    def ship(self) -> None:
        """
        Raises: as `CheckpointAudit`.
        """
        try:
            self._last = self._ship() or self._last
        except ServiceError:
            self._count.labels(result="failed").inc()
            raise
        self._count.labels(result="shipped").inc()

    def ship_last(self) -> None:
        """At the end. It may fail, as Vault may be away; the next start ships one at once."""
        try:
            self.ship()
        except ServiceError as error:
            _log.warning("last_checkpoint_not_shipped", reason=error.reason)
