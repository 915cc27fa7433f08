"""What a serving process does by itself, and how often."""

from __future__ import annotations

import kms_service.rpc.tls_environment  # noqa: F401 - before anything imports grpc

# isort: split
from collections.abc import Callable
from datetime import timedelta

from prometheus_client import Counter

from kms_service.adapters.database.turns import InTurns
from kms_service.adapters.oidc import TokenVerifier
from kms_service.config import Config
from kms_service.domain.ports import AuditLog
from kms_service.observation import lease_counter, master_key_surveyor
from kms_service.parts import Adapters
from kms_service.rewrapping import rewrap_timers
from kms_service.rpc.health import Readiness
from kms_service.telemetry.metrics import Metrics
from kms_service.timers import Timer
from kms_service.usecases.expire_pending import ExpirePending
from kms_service.usecases.shred_versions import ShredVersions
from kms_service.usecases.sweep_leases import SweepLeases
from kms_service.usecases.sweep_orphans import SweepOrphans

_PROBE_EVERY_S = 2.0
"""A sealed Vault must be noticed within 5 s (DESIGN §6 "cached keys")."""
_MARK_EVERY_S = 10.0
_POLICIES_EVERY_S = 2.0
_JOURNAL_EVERY_S = 1.0
_ISSUERS_EVERY_S = 5.0
_GAUGES_EVERY_S = 15.0
_SURVEY_EVERY_S = 30.0
_EXPIRE_EVERY_S = 300.0
_SESSIONS_EVERY_S = 60.0
_FOLD_EVERY_S = 300.0
_SWEEP_EVERY_S = 6 * 3600.0
_LEASES_EVERY_S = 60.0
_SHRED_EVERY_S = 60.0
_TOMBSTONES_EVERY_S = 60.0


def background_timers(
    config: Config, adapters: Adapters, audit: AuditLog, readiness: Readiness, metrics: Metrics
) -> list[Timer]:
    """The timers of one process: they run apart from calls, and a failing one is tried again."""
    # Each by one process at a time, of all that share the database.
    turns = {
        name: InTurns(adapters.database, name)
        for name in ("expire-pending", "sweep-orphans", "shred")
    }
    expire = ExpirePending(
        database=turns["expire-pending"],
        store=adapters.store,
        audit=audit,
        clock=adapters.clock,
        pending_ttl=timedelta(seconds=config.pending_ttl_s),
    )
    rewrapping = rewrap_timers(
        config.rewrap,
        database=adapters.database,
        rewraps=adapters.database.rewraps,
        rewrapper=adapters.vault,
        audit=audit,
        clock=adapters.clock,
        metrics=metrics,
    )
    sweep = SweepOrphans(
        database=turns["sweep-orphans"],
        store=adapters.store,
        audit=audit,
        clock=adapters.clock,
        grace=timedelta(seconds=config.store.orphan_grace_s),
    )
    shred = ShredVersions(
        database=turns["shred"],
        tombstones=adapters.tombstones,
        store=adapters.store,
        audit=audit,
        clock=adapters.clock,
    )
    sweep_leases = SweepLeases(
        database=adapters.database,
        clock=adapters.clock,
        kept=timedelta(seconds=config.ended_leases_kept_s),
    )
    count_leases = lease_counter(metrics, adapters.database, adapters.clock)
    survey = master_key_surveyor(metrics, adapters.database, adapters.vault)
    timers = [
        Timer("probe", _PROBE_EVERY_S, readiness.probe),
        Timer("clock-mark", _MARK_EVERY_S, adapters.clock.store_mark),
        Timer("policies", _POLICIES_EVERY_S, adapters.policy_reloader.load_if_changed),
        Timer("decisions", _JOURNAL_EVERY_S, adapters.journal.flush),
        Timer("gauges", _GAUGES_EVERY_S, count_leases),
        Timer("master-keys", _SURVEY_EVERY_S, survey),
        Timer("sessions", _SESSIONS_EVERY_S, adapters.transport.forget_ended_sessions),
        Timer("key-counts", _FOLD_EVERY_S, adapters.database.fold_key_counts),
        Timer("sweep-leases", _LEASES_EVERY_S, lambda: metrics.leases_swept.inc(sweep_leases())),
        Timer("tombstones", _TOMBSTONES_EVERY_S, adapters.tombstones.uids),
        *rewrapping,
    ]
    for name, every_s, work, done in (
        ("expire-pending", _EXPIRE_EVERY_S, expire, metrics.versions_expired),
        ("sweep-orphans", _SWEEP_EVERY_S, sweep, metrics.orphans_swept),
        ("shred", _SHRED_EVERY_S, shred, metrics.versions_destroyed),
    ):
        timers.append(Timer(name, every_s, _taking_turns(turns[name], work, done)))
    if adapters.tokens is not None:
        timers.append(Timer("issuers", _ISSUERS_EVERY_S, _key_refresher(adapters.tokens, metrics)))
    return timers


def _taking_turns(turns: InTurns, work: Callable[[], int], done: Counter) -> Callable[[], None]:
    def sweep() -> None:
        done.inc(turns.take(work))

    return sweep


def _key_refresher(tokens: TokenVerifier, metrics: Metrics) -> Callable[[], None]:
    def refresh() -> None:
        metrics.issuer_keys_current.set(tokens.refresh_keys())

    return refresh
