"""What is recorded of each decision and act. Never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Outcome(StrEnum):
    OK = "ok"
    DENIED = "denied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One event.

    Attributes:
        time: logical time of the event.
        event: verb as the API has it (`LeaseDataKey`), or a service act (`service_started`).
        outcome: see `Outcome`.
        request_id: of the call, 32 hexadecimal digits; empty for the service's own acts.
        trace_id: of the caller's trace (W3C Trace Context), 32 hexadecimal digits; else empty.
        latency_us: from the call's admission to this record, in microseconds; 0 for own acts.
        principal, instance, peer: who and from where; empty for the service's own acts.
        resource: resource name acted on.
        decision_id: of the policy decision; empty if none was taken.
        policies: ids of the policies that decided.
        reason: stable reason of a denial or failure, else empty.
        details: further names and numbers (lease, version_uid, expire_time, …), all strings.
    """

    time: datetime
    event: str
    outcome: Outcome
    request_id: str = ""
    trace_id: str = ""
    latency_us: int = 0
    principal: str = ""
    instance: str = ""
    peer: str = ""
    resource: str = ""
    decision_id: str = ""
    policies: tuple[str, ...] = ()
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
