"""What `/status` tells, and the line that `modelkms-server status` makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from grpc_health.v1.health import HealthServicer

from kms_service.audit_checkpoints import AuditCheckpoints
from kms_service.domain.audit import ChainHead
from kms_service.domain.errors import StateUnavailable, VaultSealed, VaultUnavailable
from kms_service.rpc.health import Readiness
from kms_service.status import RUNBOOKS, Status, summary, together
from kms_service.telemetry.master_key_metrics import MasterKeyReading
from kms_service.telemetry.metrics import Metrics
from tests.support.tools import REPOSITORY


@dataclass
class Parts:
    """A service whose parts are as the test says."""

    broken: dict[str, Exception] = field(default_factory=dict)
    failing: bool = False
    usable_for_s: float = 0.0
    ahead: timedelta = timedelta()
    head: ChainHead | None = field(default_factory=lambda: ChainHead("main", 7, "a" * 64))

    def __post_init__(self) -> None:
        self.metrics = Metrics([], [], [])
        self.metrics.policies_current.set(1)
        self.metrics.tls_last_reload_ok.set(1)
        probes = {name: self._probe(name) for name in ("vault", "database")}
        self.readiness = Readiness(
            HealthServicer(), probes, {"": ("vault", "database")}, self.metrics
        )
        self.checkpoints = AuditCheckpoints(lambda: None, self, 60.0, self.metrics)  # type: ignore[arg-type]  # never asked
        self.status = Status(
            self.readiness, self, self.checkpoints, self, self.metrics, now=self._now
        )

    def __len__(self) -> int:
        return 3

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def _probe(self, name: str) -> Callable[[], None]:
        def probe() -> None:
            if name in self.broken:
                raise self.broken[name]

        return probe

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.status.pages()["/status"]().body)
        return facts

    def page(self, path: str) -> tuple[int, str]:
        page = self.status.pages()[path]()
        return page.status, page.body.decode()


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_all_is_well(parts: Parts) -> None:
    assert parts.page("/readyz") == (503, "starting\n")
    parts.readiness.probe()
    parts.metrics.leases_live.set(412)
    assert parts.page("/livez") == (200, "alive\n")
    assert parts.page("/readyz") == (200, "ready\n")
    assert summary(parts.facts()) == "SERVING 412 leases live; audit record 7"
    assert parts.facts()["ready"] is True


def test_vault_away_is_not_ready_but_alive_and_says_how_long_keys_last(parts: Parts) -> None:
    parts.broken["vault"] = VaultUnavailable()
    parts.readiness.probe()
    parts.ahead = timedelta(minutes=4)
    parts.usable_for_s = 90.0
    assert parts.page("/livez") == (200, "alive\n")
    assert parts.page("/readyz") == (503, "vault: VAULT_UNAVAILABLE\n")
    until = datetime.fromisoformat(parts.facts()["cached_keys_until"])
    assert summary(parts.facts()) == (
        f"DEGRADED vault unreachable 4 min; cached keys until {until:%H:%M}Z; 0 leases live; "
        "audit record 7; runbook docs/runbooks/vault-unreachable.md"
    )


def sealed(parts: Parts) -> None:
    parts.broken["vault"] = VaultSealed()
    parts.readiness.probe()


def no_database(parts: Parts) -> None:
    parts.broken["database"] = StateUnavailable()
    parts.readiness.probe()


def audit_fails(parts: Parts) -> None:
    parts.failing = True


def policies_refused(parts: Parts) -> None:
    parts.metrics.policies_current.set(0)


def tls_refused(parts: Parts) -> None:
    parts.metrics.tls_last_reload_ok.set(0)


def no_checkpoints(parts: Parts) -> None:
    parts.ahead = timedelta(minutes=6)


def glass_broken(parts: Parts) -> None:
    parts.metrics.break_glass.set(1)


def certificate_nearly_over(parts: Parts) -> None:
    now = datetime.now(UTC)
    parts.metrics.certificate(now - timedelta(days=80), now + timedelta(days=10, minutes=1))


def certificate_over(parts: Parts) -> None:
    now = datetime.now(UTC)
    parts.metrics.certificate(now - timedelta(days=80), now - timedelta(days=1))


def issuer_away(parts: Parts) -> None:
    parts.metrics.issuer_keys_current.set(0)


def token_nearly_over(parts: Parts) -> None:
    parts.metrics.observe_gauge("modelkms_vault_token_ttl_seconds", "", lambda: 290.0)


def master_key_gone(parts: Parts) -> None:
    parts.metrics.master_keys.put("camera", MasterKeyReading(usable=False))
    parts.metrics.master_keys.put("fine", MasterKeyReading(usable=True))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (glass_broken, "somebody administers by break-glass"),
        (certificate_nearly_over, "server certificate ends in 240 h"),
        (certificate_over, "server certificate has ended"),
        (issuer_away, "keys of a token issuer cannot be fetched"),
        (token_nearly_over, "Vault token ends in 4 min"),
        (master_key_gone, "master key of camera unusable"),
        (sealed, "vault sealed"),
        (no_database, "database unreachable"),
        (audit_fails, "audit log cannot be written"),
        (policies_refused, "policy files refused, last good set in force"),
        (tls_refused, "TLS files unusable, last good ones in use"),
        (no_checkpoints, "no audit checkpoint shipped 6 min"),
    ],
)
def test_each_trouble_is_told_with_a_page_that_is_there(
    parts: Parts, harm: Callable[[Parts], None], told: str
) -> None:
    parts.readiness.probe()
    harm(parts)
    facts = parts.facts()
    (trouble,) = facts["troubles"]
    assert summary(facts).startswith(f"DEGRADED {told}")
    assert trouble["runbook"].startswith(RUNBOOKS)
    assert (REPOSITORY / trouble["runbook"]).is_file()


def test_several_workers_are_told_as_one_service(parts: Parts) -> None:
    parts.readiness.probe()
    well = parts.status.pages()["/status"]().body
    assert json.loads(together({"0": well, "1": well}))["state"] == "SERVING"
    parts.broken["vault"] = VaultUnavailable()
    parts.readiness.probe()
    worse = parts.status.pages()["/status"]().body
    parts.failing = True
    worst = parts.status.pages()["/status"]().body
    facts = json.loads(together({"0": well, "1": worse, "2": worst, "3": None}))
    assert (facts["state"], facts["ready"], facts["cached_keys"]) == ("DEGRADED", True, 9)
    assert [trouble["what"] for trouble in facts["troubles"]] == [
        "vault unreachable",
        "audit log cannot be written",
        "worker 3 does not answer",
    ]
    assert facts["audit"]["records"] == 21
    assert summary(facts).endswith("runbook docs/runbooks/worker-missing.md")


def test_f64_a_service_that_stops_is_not_ready(parts: Parts) -> None:
    parts.readiness.probe()
    parts.readiness.close()
    assert parts.page("/readyz") == (503, "stopping\n")
    assert parts.page("/livez") == (200, "alive\n")
    assert summary(parts.facts()).startswith("STOPPING ")


def test_a_probe_that_hangs_is_not_alive(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.readiness.probe()
    monkeypatch.setattr("kms_service.rpc.health._PROBED_WITHIN_S", 0.0)
    assert parts.page("/livez") == (503, "probes hang\n")
