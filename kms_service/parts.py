"""The real parts that a configuration names: database, Vault, store, policies, issuers, log.

Each is opened and not yet wired: commands take the one they need, `bootstrap` takes them all.
"""

from __future__ import annotations

import kms_service.rpc.tls_environment  # noqa: F401 - before anything imports grpc

# isort: split
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from modelkms_api.object_store import BucketSettings

from kms_service.adapters import database as sql
from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.audit_stream import AuditStream
from kms_service.adapters.bucket_storage import BucketArtifactStore
from kms_service.adapters.cedar import CedarPolicyEngine
from kms_service.adapters.checkpoint_store import BucketCheckpointStore, FolderCheckpointStore
from kms_service.adapters.clock import LogicalClock, boottime_s
from kms_service.adapters.data_key_cache import CacheResult, DataKeyCache
from kms_service.adapters.jwks import KeyCache, KeySource, fetcher
from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.adapters.measured import timed
from kms_service.adapters.object_storage import LocalArtifactStore
from kms_service.adapters.oidc import Issuer, TokenVerifier
from kms_service.adapters.vault import VaultMasterKeys
from kms_service.adapters.vault_session import VaultSession, VaultSettings
from kms_service.adapters.vault_signing import VaultNoteSigner
from kms_service.adapters.vault_tombstones import VaultTombstones, WithheldMasterKeys
from kms_service.config import AuditSection, CheckpointSection, Config, IssuerSection, StoreSection
from kms_service.domain.errors import ConfigurationError
from kms_service.domain.ports import (
    ArtifactStore,
    CheckpointPlace,
    Clock,
    MasterKeys,
)
from kms_service.policy_reload import PolicyReloader
from kms_service.rpc.tls import TlsFiles
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.tracing import NoTracer, Tracer
from kms_service.usecases.decision_journal import DecisionJournal


def migrate_database(config: Config) -> None:
    """Create the database, or bring its schema to this version's.

    Raises:
        StateUnavailable, StateCorrupt, ConfigurationError.
    """
    sql.migrate(config.database.url, database_options(config))


@dataclass(frozen=True)
class Adapters:
    """The real ones, behind the ports that the use cases know."""

    database: sql.SqlDatabase
    clock: LogicalClock
    vault: VaultMasterKeys
    tombstones: VaultTombstones
    master_keys: WithheldMasterKeys
    """`vault`, but for versions with a tombstone."""
    data_keys: DataKeyCache
    tokens: TokenVerifier | None
    policy: CedarPolicyEngine
    policy_reloader: PolicyReloader
    journal: DecisionJournal
    audit: FileAuditLog
    audit_stream: AuditStream | None
    tracer: Tracer
    store: ArtifactStore
    transport: HpkeKeyTransport


def open_database(config: Config) -> sql.SqlDatabase:
    """
    Raises:
        ConfigurationError: its schema is not this version's.
        StateUnavailable, StateCorrupt.
    """
    state = sql.schema_state(config.database.url, database_options(config))
    if state is sql.SchemaState.NEWER:
        raise ConfigurationError(
            "database.url: the schema was made by a newer version; install that version"
        )
    if state is not sql.SchemaState.CURRENT:
        raise ConfigurationError(
            f"database.url: the schema is {state.value}; run `modelkms-server migrate`"
        )
    return sql.SqlDatabase(config.database.url, database_options(config))


def database_options(config: Config) -> sql.EngineOptions:
    database = config.database
    return sql.EngineOptions(
        connections=database.connections,
        statement_timeout_s=database.statement_timeout_s,
        password_file=database.password_file,
        ca_file=database.ca_file,
    )


def open_vault(config: Config) -> VaultMasterKeys:
    """Does not connect yet."""
    return VaultMasterKeys(open_vault_session(config), config.vault.transit_mount)


@contextmanager
def _extra_for(setting: str) -> Iterator[None]:
    """Imports what only the extra `tracing` brings.

    Raises:
        ConfigurationError: the setting needs it, and it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{setting}: needs {error.name}: pip install 'modelkms-server[tracing]'"
        ) from error


def open_tracer(config: Config) -> Tracer:
    """
    Raises:
        ConfigurationError: traces are wanted, and the extra is not installed; or the file of
            headers cannot be used.
    """
    tracing = config.tracing
    if tracing.endpoint is None:
        return NoTracer()
    with _extra_for("tracing.endpoint"):
        from kms_service.telemetry.opentelemetry import Collector, otlp
    collector = Collector(tracing.endpoint, tracing.ca_file, tracing.headers_file)
    return otlp(collector, tracing.sample_ratio)


def open_audit_stream(audit: AuditSection, metrics: Metrics) -> AuditStream | None:
    """
    Raises:
        ConfigurationError: OTLP is wanted, and the extra is not installed; or the file of headers
            cannot be used.
    """
    dropped = metrics.audit_stream_dropped.inc
    if audit.stream == "stdout":
        return AuditStream(sys.stdout.buffer, dropped)
    if audit.otlp_endpoint is None:
        return None
    with _extra_for("audit.stream"):
        from kms_service.telemetry.opentelemetry import Collector
        from kms_service.telemetry.otlp_logs import OtlpLines
    collector = Collector(audit.otlp_endpoint, audit.otlp_ca_file, audit.otlp_headers_file)
    return AuditStream(OtlpLines(collector), dropped)


def open_vault_session(config: Config, tracer: Tracer | None = None) -> VaultSession:
    """Does not connect yet."""
    vault = config.vault
    return VaultSession(
        VaultSettings(
            address=vault.address,
            ca_file=vault.ca_file,
            namespace=vault.namespace,
            approle_mount=vault.approle_mount,
            role_id_file=vault.role_id_file,
            secret_id_file=vault.secret_id_file,
            token_file=vault.token_file,
            request_timeout_s=vault.request_timeout_s,
            connections=vault.connections,
        ),
        tracer=tracer,
    )


def open_tokens(
    config: Config, clock: Clock, looked_up: Callable[[bool], None]
) -> TokenVerifier | None:
    """Does not ask any issuer yet. None without issuers."""
    if not config.issuers:
        return None
    return TokenVerifier([issuer_of(section) for section in config.issuers], clock, looked_up)


def issuer_of(section: IssuerSection) -> Issuer:
    """Does not ask it yet."""
    source = KeySource(
        section.issuer,
        section.jwks_url,
        section.jwks_file,
        section.ca_file,
        section.bearer_token_file,
    )
    keys = KeyCache(
        fetcher(source),
        boottime_s,
        refresh_s=section.keys_refresh_s,
        max_age_s=section.keys_max_age_s,
        cool_down_s=section.keys_cool_down_s,
    )
    return Issuer(
        name=section.name,
        issuer=section.issuer,
        audiences=section.audiences,
        algorithms=section.algorithms,
        groups_claim=section.groups_claim,
        keys=keys,
    )


def open_store(config: Config) -> ArtifactStore:
    """A bucket is not asked yet.

    Raises:
        ConfigurationError: a bucket cannot be used as it is described.
        StorageUnavailable: a folder cannot be made or used.
    """
    store = config.store
    if store.kind == "local":
        assert store.folder is not None  # StoreSection has checked
        return LocalArtifactStore(store.folder)
    return BucketArtifactStore(_bucket(store), signs_links=store.links)


def open_checkpoint_store(place: CheckpointSection) -> CheckpointPlace:
    """A bucket is not asked yet.

    Raises:
        ConfigurationError: the place cannot be used as it is described.
    """
    if place.kind == "local":
        assert place.folder is not None  # CheckpointSection has checked
        return FolderCheckpointStore(place.folder)
    return BucketCheckpointStore(_bucket(place))


def _bucket(place: StoreSection | CheckpointSection) -> BucketSettings:
    assert place.kind != "local"
    assert place.bucket is not None  # the section has checked
    return BucketSettings(
        kind=place.kind,
        bucket=place.bucket,
        prefix=place.prefix,
        endpoint=place.endpoint,
        region=place.region,
        account=place.account,
        ca_file=place.ca_file,
        credentials_file=place.credentials_file,
    )


def note_signer(master_keys: VaultMasterKeys, place: CheckpointSection) -> VaultNoteSigner:
    return master_keys.note_signer(place.key, place.origin)


def open_policy(config: Config, metrics: Metrics) -> tuple[CedarPolicyEngine, PolicyReloader]:
    """An engine with its policies in force, and what keeps them those of the folder.

    Raises:
        ConfigurationError: the policy set is refused.
    """
    policy = config.policy
    engine = CedarPolicyEngine(
        policy.folder,
        policy.default_lease_ttl,
        policy.max_lease_ttl,
        metrics.cache("policy_decision"),
    )
    reloader = PolicyReloader(engine, policy.folder, metrics)
    reloader.load()
    return engine, reloader


def tls_files(config: Config) -> TlsFiles:
    server = config.server
    return TlsFiles(server.certificate_file, server.key_file, server.client_ca_file)


def open_adapters(config: Config, metrics: Metrics) -> Adapters:
    """All of them, for one serving process. Vault and a bucket are not asked yet.

    Raises:
        ConfigurationError, StateUnavailable, StateCorrupt, StorageUnavailable, AuditUnavailable.
    """
    policy, reloader = open_policy(config, metrics)
    database = open_database(config)
    clock = LogicalClock(database, wall=database.wall)
    tracer = open_tracer(config)
    session = open_vault_session(config, tracer)
    vault = VaultMasterKeys(session, config.vault.transit_mount)
    tombstones = VaultTombstones(session, config.vault.kv_mount)
    master_keys = WithheldMasterKeys(vault, tombstones)
    data_keys = _data_key_cache(config, master_keys, metrics)
    # Here or on another replica: no key of a destroyed version stays in memory.
    tombstones.when_found(lambda: data_keys.flush("destroyed"))
    stream = open_audit_stream(config.audit, metrics)
    return Adapters(
        database=database,
        clock=clock,
        vault=vault,
        tombstones=tombstones,
        master_keys=master_keys,
        data_keys=data_keys,
        tokens=open_tokens(config, clock, metrics.cache("token")),
        policy=policy,
        policy_reloader=reloader,
        journal=DecisionJournal(database, metrics.decisions_dropped.inc),
        audit=FileAuditLog(
            config.audit.folder / config.audit.chain,
            clock.now,
            segment_bytes=config.audit.segment_bytes,
            gather_us=config.audit.gather_us,
            tell=stream.tell if stream is not None else lambda _lines: None,
        ),
        audit_stream=stream,
        tracer=tracer,
        store=open_store(config),
        transport=HpkeKeyTransport(looked_up=metrics.cache("transport_session")),
    )


def _data_key_cache(config: Config, master_keys: MasterKeys, metrics: Metrics) -> DataKeyCache:
    sources = {result: metrics.data_keys.labels(source=result.value) for result in CacheResult}
    return DataKeyCache(
        timed(master_keys, metrics.steps.step("vault"), but=("probe",)),
        ttl=timedelta(seconds=config.vault.key_cache_ttl_s),
        outage_grace=timedelta(seconds=config.vault.outage_grace_s),
        max_keys=config.vault.key_cache_keys,
        monotonic=boottime_s,
        random=random.random,
        count=lambda result: sources[result].inc(),
    )
