"""Which records are asked for."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kms_service.adapters.audit_policies import RecordedPolicies
from kms_service.adapters.audit_reading import Reading
from kms_service.domain.audit import SHORT_EPOCH

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """All that is given must hold.

    Attributes:
        principal: exactly.
        model: `projects/P/models/M`, or a version or alias of it: what was asked for, or meant.
        lease: `projects/P/leases/L`, or its last part alone.
        event, outcome: exactly.
        since, until: of the record; with `held`, of the lease.
        held: leases and renewals only, by which somebody could hold the key at some time between
            `since` and `until`.
    """

    principal: str | None = None
    model: str | None = None
    lease: str | None = None
    event: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    held: bool = False

    def needles(self) -> tuple[bytes, ...]:
        """What a line must have in it, as it stands there: most need not be parsed."""
        wanted = (self.principal, self.model, self.lease, self.event, self.outcome)
        return tuple(json.dumps(text)[1:-1].encode() for text in wanted if text is not None)

    def matches(self, record: Record) -> bool:
        return (
            self.principal in (None, record["principal"])
            and self.event in (None, record["event"])
            and self.outcome in (None, record["outcome"])
            and self._of_model(record)
            and self._of_lease(record)
            and self._in_time(record)
        )

    def _of_model(self, record: Record) -> bool:
        if self.model is None:
            return True
        names = (record["resource"], record["details"].get("version", ""))
        # Not `startswith` alone: `…/versions/3` is no part of `…/versions/30`.
        return any(f"{name}/".startswith(f"{self.model}/") for name in names)

    def _of_lease(self, record: Record) -> bool:
        if self.lease is None:
            return True
        names = (record["resource"], record["details"].get("lease", ""))
        return any(name == self.lease or name.endswith(f"/leases/{self.lease}") for name in names)

    def _in_time(self, record: Record) -> bool:
        first = last = datetime.fromisoformat(record["time"])
        if self.held:
            end = record["details"].get("expire_time")
            if record["outcome"] != "ok" or end is None:
                return False
            last = datetime.fromisoformat(end)
        return (self.since is None or last >= self.since) and (
            self.until is None or first <= self.until
        )


def by_right(record: Record) -> list[str]:
    """The policies that decided, each `readers@6fcfb764d23e` if the record names their set."""
    epoch = record.get("policy_epoch", "")
    suffix = f"@{epoch[:SHORT_EPOCH]}" if epoch else ""
    return [f"{policy}{suffix}" for policy in record["policies"]]


def matching(
    reading: Reading, wanted: RecordFilter, policies: RecordedPolicies | None = None
) -> Iterator[Record]:
    """Records of all chains in the order of their times, each checked before it is handed out.

    Args:
        policies: told every line; knows by what right once all was read.

    Raises:
        OSError: a file cannot be read.
    """
    needles = wanted.needles()

    def of_chain(lines: Iterator[bytes]) -> Iterator[Record]:
        for line in lines:
            if policies is not None:
                policies.take(line)
            if all(needle in line for needle in needles):
                record = json.loads(line)
                if wanted.matches(record):
                    yield record

    chains = [of_chain(chain.lines()) for chain in reading.chains]
    return heapq.merge(*chains, key=lambda record: str(record["time"]))
