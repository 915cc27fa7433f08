"""What metrics tell of the adapters' own state: asked at each scrape, or surveyed now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kms_service.adapters.data_key_cache import DataKeyCache
from kms_service.adapters.vault import VaultMasterKeys
from kms_service.domain.ports import Clock, Database
from kms_service.telemetry.master_key_metrics import MasterKeyReading
from kms_service.telemetry.metrics import Metrics
from kms_service.usecases.survey_master_keys import SurveyedMasterKey, SurveyMasterKeys


class SessionCount(Protocol):
    @property
    def sessions(self) -> int: ...


class AuditState(Protocol):
    @property
    def last_sequence(self) -> int: ...
    @property
    def waiting(self) -> int: ...


def watch_vault(metrics: Metrics, master_keys: VaultMasterKeys, data_keys: DataKeyCache) -> None:
    metrics.observe_gauge(
        "modelkms_vault_token_ttl_seconds",
        "How long the service's Vault token still lasts; absent without one",
        lambda: master_keys.status().token_ttl_s,
    )
    metrics.observe_gauge(
        "modelkms_vault_breaker_open",
        "1 while calls to Vault are not even tried",
        lambda: float(master_keys.status().breaker_open),
    )
    metrics.observe_gauge(
        "modelkms_cached_data_keys",
        "Unwrapped data keys in memory",
        lambda: float(len(data_keys)),
    )
    metrics.observe_gauge(
        "modelkms_vault_outage_grace_in_use",
        "1 while keys are issued from memory only because Vault is unreachable",
        lambda: float(data_keys.outage),
    )


def watch_transport(metrics: Metrics, transport: SessionCount) -> None:
    metrics.observe_gauge(
        "modelkms_transport_sessions",
        "Key transport sessions held: client keys whose next answer costs no HPKE",
        lambda: float(transport.sessions),
    )


def watch_audit(metrics: Metrics, audit: AuditState) -> None:
    metrics.observe_gauge(
        "modelkms_audit_chain_records",
        "Number of the last durable record of this process's audit chain",
        lambda: float(audit.last_sequence),
    )
    metrics.observe_gauge(
        "modelkms_audit_waiting_records",
        "Audit records that wait to become durable, and calls with them",
        lambda: float(audit.waiting),
    )


def lease_counter(metrics: Metrics, database: Database, clock: Clock) -> Callable[[], None]:
    """Work for a timer."""

    def count() -> None:
        with database.read() as tx:
            metrics.leases_live.set(tx.leases.count_live(clock.now()))

    return count


def master_key_surveyor(
    metrics: Metrics, database: Database, master_keys: VaultMasterKeys
) -> Callable[[], None]:
    """Work for a timer."""
    survey = SurveyMasterKeys(database=database, master_keys=master_keys)

    def look() -> None:
        for found in survey():
            metrics.master_keys.put(found.project.project, _reading(found))

    return look


def _reading(found: SurveyedMasterKey) -> MasterKeyReading:
    if found.state is None:
        return MasterKeyReading(usable=False, keys=found.keys)
    period = found.state.auto_rotate_period
    return MasterKeyReading(
        usable=True,
        version=found.state.latest_version,
        rotated_at=found.state.latest_version_create_time.timestamp(),
        rotation_period_s=period.total_seconds() if period is not None else 0.0,
        keys=found.keys,
        keys_under_old_versions=found.keys_under_old_versions,
    )
