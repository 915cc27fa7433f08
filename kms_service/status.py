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
_LIFE_LEFT = 0.25
"""Of the server certificate's life, as the alert has it."""
_TOKEN_S = 300.0
"""The Vault token is renewed long before; as the alert has it."""
_TOLD = (
    "modelkms_policies_current",
    "modelkms_break_glass_policies",
    "modelkms_tls_last_reload_ok",
    "modelkms_certificate_issued_timestamp_seconds",
    "modelkms_certificate_expiry_timestamp_seconds",
    "modelkms_issuer_keys_current",
    "modelkms_vault_token_ttl_seconds",
)


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
        yield from self._told_by_metrics()

    def _told_by_metrics(self) -> Iterator[Trouble]:
        """What the alerts are told by, so that both say the same."""
        values = self._values(*_TOLD)
        if not values.get("modelkms_policies_current", 1):
            yield _trouble("policy files refused, last good set in force", "policy-refused")
        if values.get("modelkms_break_glass_policies", 0):
            yield _trouble("somebody administers by break-glass", "glass-broken")
        if not values.get("modelkms_tls_last_reload_ok", 1):
            yield _trouble("TLS files unusable, last good ones in use", "tls-reload-refused")
        issued = values.get("modelkms_certificate_issued_timestamp_seconds", 0.0)
        expiry = values.get("modelkms_certificate_expiry_timestamp_seconds", 0.0)
        left_s = expiry - self._now().timestamp()
        if expiry and left_s < _LIFE_LEFT * (expiry - issued):
            lasts = f"ends in {_lasted(timedelta(seconds=left_s))}" if left_s > 0 else "has ended"
            yield _trouble(f"server certificate {lasts}", "certificate-expiring")
        if not values.get("modelkms_issuer_keys_current", 1):
            yield _trouble("keys of a token issuer cannot be fetched", "issuer-keys-stale")
        token_s = values.get("modelkms_vault_token_ttl_seconds", _TOKEN_S)
        if token_s < _TOKEN_S:
            lasts = _lasted(timedelta(seconds=token_s))
            yield _trouble(f"Vault token ends in {lasts}", "vault-token-expiring")
        for project in self._projects_without_master_key():
            yield _trouble(f"master key of {project} unusable", "master-key-unusable")

    def _projects_without_master_key(self) -> list[str]:
        families = self._metrics.registry.restricted_registry(["modelkms_master_key_usable"])
        return [
            sample.labels["project"]
            for family in families.collect()
            for sample in family.samples
            if sample.name == "modelkms_master_key_usable" and not sample.value
        ]

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


def together(told: Mapping[str, bytes | None]) -> bytes:
    """`/status` of several workers as that of one service.

    Args:
        told: by worker, what it answered; None: nothing. At least one did.
    """
    answers = [json.loads(body) for body in told.values() if body is not None]
    missing = [worker for worker, body in told.items() if body is None]
    troubles: dict[str, dict[str, str]] = {}
    for trouble in (trouble for answer in answers for trouble in answer["troubles"]):
        known = troubles.setdefault(trouble["what"], trouble)
        if trouble["since"] and trouble["since"] < (known["since"] or trouble["since"]):
            troubles[trouble["what"]] = trouble
    lacking = [_trouble(f"worker {worker} does not answer", "worker-missing") for worker in missing]
    found = [*troubles.values(), *map(asdict, lacking)]
    audits = [answer["audit"] for answer in answers]
    stopping = all(answer["state"] == "STOPPING" for answer in answers)
    whole = {
        **answers[0],
        "state": "STOPPING" if stopping else "DEGRADED" if found else "SERVING",
        "ready": any(answer["ready"] for answer in answers),
        "started": min(answer["started"] for answer in answers),
        "time": max(answer["time"] for answer in answers),
        "troubles": found,
        "leases_live": max(answer["leases_live"] for answer in answers),
        "cached_keys": sum(answer["cached_keys"] for answer in answers),
        "cached_keys_until": max(answer["cached_keys_until"] for answer in answers),
        "audit": {
            "chain": " ".join(audit["chain"] for audit in audits),
            "records": sum(audit["records"] for audit in audits),
            "checkpoint": min(audit["checkpoint"] for audit in audits),
        },
    }
    return json.dumps(whole, indent=1).encode() + b"\n"


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
