"""What is recorded of each decision and act. Never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

POLICY_FILE_LOADED = "policy_file_loaded"
"""Event: one file of a policy set that is in force from now on, or a part of it."""
SHORT_EPOCH = 12
"""So many hexadecimal digits of a policy set's epoch are shown to people."""


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
        policy_epoch: of the set they are of; see `Decision`.
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
    policy_epoch: str = ""
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where a chain of audit records stands.

    Attributes:
        chain: name.
        records: number of its last durable record; at least 1.
        hash: that record's, 64 hexadecimal digits.
    """

    chain: str
    records: int
    hash: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where all chains stood at a time (docs/spec/audit-v1.md §6). Signed, and kept elsewhere.

    Attributes:
        origin: of which deployment; no spaces, no plus.
        heads: one a chain, by name.
    """

    origin: str
    time: datetime
    heads: tuple[ChainHead, ...]

    def text(self) -> str:
        """What is signed."""
        heads = "".join(f"{head.chain} {head.records} {head.hash}\n" for head in self.heads)
        return f"{self.origin}\n{_CHECKPOINT}\n{self.time.isoformat()}\n{heads}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            ValueError: not the text of a checkpoint.
        """
        origin, kind, time, *heads = text.removesuffix("\n").split("\n")
        checkpoint = cls(
            origin, datetime.fromisoformat(time), tuple(_parse_head(head) for head in heads)
        )
        if kind != _CHECKPOINT or checkpoint.text() != text or not heads:
            raise ValueError("not the text of an audit checkpoint")
        return checkpoint


def checkpoint_name(time: datetime, chain: str = "") -> str:
    """Of what a process ships, in the order of time. Without a chain: before all of that time."""
    stamp = f"{time.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
    return f"{stamp}-{chain}.note" if chain else stamp


_CHECKPOINT = "modelkms-audit-v1 checkpoint"


def _parse_head(line: str) -> ChainHead:
    chain, records, digest = line.split(" ")
    if not chain or len(digest) != 64 or int(records) < 1:
        raise ValueError("not a chain's head")
    return ChainHead(chain, int(records), digest)
