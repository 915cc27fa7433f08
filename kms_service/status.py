"""How the service is, in one line: what is wrong since when, what still works, what to read.

    /livez    200 while the process does its work; else restart it
    /readyz   200 while it answers every call; else send calls elsewhere
    /status   all of it as JSON, for `modelkms-server status`

Served beside `/metrics`: who may see the one may see the other (docs/adr/0012).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from kms_service import __version__
from kms_service.audit_checkpoints import AuditCheckpoints
from kms_service.domain.audit import ChainHead
from kms_service.rpc.health import DependencyState, Readiness
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.metrics_server import Page, Pages

RUNBOOKS = "docs/runbooks"
_CHECKPOINTS_MISSED = 5


class AuditState(Protocol):
    @property
    def head(self) -> ChainHead | None: ...
    @property
    def failing(self) -> bool: ...


class CachedKeys(Protocol):
    def __len__(self) -> int: ...
    @property
    def usable_for_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is not as it should be.

    Attributes:
        what: in a few words.
        since: ISO 8601; empty if it is not known.
        reason: stable, as in logs; may be empty.
        runbook: page that says what to do.
    """

    what: str
    since: str
    reason: str
    runbook: str


class Status:
    """Asks the parts of a running service how they are. Never raises, never waits for a
    dependency: what it tells of Vault and database is what the last probe found."""

    def __init__(
        self,
        readiness: Readiness,
        audit: AuditState,
        checkpoints: AuditCheckpoints | None,
        cached_keys: CachedKeys,
        metrics: Metrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._readiness = readiness
        self._audit = audit
        self._checkpoints = checkpoints
        self._cached_keys = cached_keys
        self._metrics = metrics
        self._now = now
        self._started = now()

    def pages(self) -> Pages:
        return {"/livez": self._livez, "/readyz": self._readyz, "/status": self._status}

    def facts(self) -> dict[str, Any]:
        """As `/status` has them."""
        values = self._values("modelkms_leases_live", "modelkms_ready")
        troubles = [asdict(trouble) for trouble in self._troubles()]
        head, now = self._audit.head, self._now()
        usable_for_s = self._cached_keys.usable_for_s
        return {
            "state": self._state(bool(troubles)),
            "ready": bool(values.get("modelkms_ready")),
            "version": __version__,
            "started": self._started.isoformat(),
            "time": now.isoformat(),
            "troubles": troubles,
            "leases_live": int(values.get("modelkms_leases_live", 0)),
            "cached_keys": len(self._cached_keys),
            "cached_keys_until": (now + timedelta(seconds=usable_for_s)).isoformat()
            if usable_for_s
            else "",
            "audit": {
                "chain": head.chain if head is not None else "",
                "records": head.records if head is not None else 0,
                "checkpoint": self._checkpoint_time(),
            },
        }

    def _state(self, troubled: bool) -> str:
        if self._readiness.closing:
            return "STOPPING"
        return "DEGRADED" if troubled else "SERVING"

    def _troubles(self) -> Iterator[Trouble]:
        for state in self._readiness.dependencies:
            if state.reason is not None:
                yield _of_dependency(state, state.reason)
        if self._audit.failing:
            yield _trouble("audit log cannot be written", "audit-failing", "AUDIT_UNAVAILABLE")
        if self._checkpoints_missed():
            yield _trouble("no audit checkpoint shipped", "checkpoints-stale", since=self._since())
        values = self._values("modelkms_policies_current", "modelkms_tls_last_reload_ok")
        if not values.get("modelkms_policies_current", 1):
            yield _trouble("policy files refused, last good set in force", "policy-refused")
        if not values.get("modelkms_tls_last_reload_ok", 1):
            yield _trouble("TLS files unusable, last good ones in use", "tls-reload-refused")

    def _checkpoints_missed(self) -> bool:
        if self._checkpoints is None:
            return False
        missed = timedelta(seconds=_CHECKPOINTS_MISSED * self._checkpoints.every_s)
        return self._now() - (self._checkpoints.last_time or self._started) > missed

    def _since(self) -> str:
        return self._checkpoint_time() or self._started.isoformat()

    def _checkpoint_time(self) -> str:
        last = self._checkpoints.last_time if self._checkpoints is not None else None
        return last.isoformat() if last is not None else ""

    def _values(self, *names: str) -> Mapping[str, float]:
        families = self._metrics.registry.restricted_registry(names).collect()
        return {sample.name: sample.value for family in families for sample in family.samples}

    def _livez(self) -> Page:
        return Page(200, b"alive\n") if self._readiness.alive else Page(503, b"probes hang\n")

    def _readyz(self) -> Page:
        if self._readiness.closing:
            return Page(503, b"stopping\n")
        down = [state for state in self._readiness.dependencies if state.reason is not None]
        if not down and self._readiness.dependencies:
            return Page(200, b"ready\n")
        told = "".join(f"{state.name}: {state.reason}\n" for state in down) or "starting\n"
        return Page(503, told.encode())

    def _status(self) -> Page:
        body = json.dumps(self.facts(), indent=1).encode() + b"\n"
        return Page(200, body, "application/json")


_DEPENDENCY_TROUBLES = {
    "VAULT_SEALED": ("sealed", "vault-unreachable"),
    "VAULT_ACCESS_REFUSED": ("refuses the service", "vault-access-refused"),
    "VAULT_BAD_REPLY": ("is not understood", "vault-unreachable"),
}


def _of_dependency(state: DependencyState, reason: str) -> Trouble:
    how, page = _DEPENDENCY_TROUBLES.get(reason, ("unreachable", f"{state.name}-unreachable"))
    return _trouble(f"{state.name} {how}", page, reason, state.since.isoformat())


def _trouble(what: str, page: str, reason: str = "", since: str = "") -> Trouble:
    return Trouble(what, since, reason, f"{RUNBOOKS}/{page}.md")


def summary(facts: Mapping[str, Any]) -> str:
    """One line of what `/status` told."""
    now = datetime.fromisoformat(facts["time"])
    parts = []
    for trouble in facts["troubles"]:
        lasted = ""
        if trouble["since"]:
            lasted = f" {_lasted(now - datetime.fromisoformat(trouble['since']))}"
        parts.append(f"{trouble['what']}{lasted}")
    if parts and facts["cached_keys_until"]:
        until = datetime.fromisoformat(facts["cached_keys_until"])
        parts.append(f"cached keys until {until:%H:%M}Z")
    parts.append(f"{facts['leases_live']} leases live")
    audit = facts["audit"]
    parts.append(f"audit record {audit['records']}")
    parts += [f"runbook {page}" for page in dict.fromkeys(t["runbook"] for t in facts["troubles"])]
    return f"{facts['state']} " + "; ".join(parts)


def _lasted(duration: timedelta) -> str:
    seconds = max(0, int(duration.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 2 * 3600:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h"
