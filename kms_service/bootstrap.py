"""The one place where things are constructed: a configuration in, a service out."""

from __future__ import annotations

import kms_service.rpc.tls_environment  # noqa: F401 - before anything imports grpc

# isort: split
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2
from modelkms_api.object_store import BucketSettings
from modelkms_api.v1 import (
    access_service_pb2,
    artifact_service_pb2,
    key_service_pb2,
    master_key_service_pb2,
    model_service_pb2,
    policy_service_pb2,
)

from kms_service.adapters import database as sql
from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.audit_stream import AuditStream
from kms_service.adapters.bucket_storage import BucketArtifactStore
from kms_service.adapters.cedar import CedarPolicyEngine
from kms_service.adapters.cedar_questions import CedarPolicyQuestions
from kms_service.adapters.checkpoint_store import BucketCheckpointStore, FolderCheckpointStore
from kms_service.adapters.clock import LogicalClock, boottime_s
from kms_service.adapters.data_key_cache import CacheResult, DataKeyCache
from kms_service.adapters.jwks import KeyCache, KeySource, fetcher
from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.adapters.measured import CountedAuditLog, TimedDatabase, timed
from kms_service.adapters.object_storage import LocalArtifactStore
from kms_service.adapters.oidc import Issuer, TokenVerifier
from kms_service.adapters.vault import VaultMasterKeys
from kms_service.adapters.vault_session import VaultSession, VaultSettings
from kms_service.adapters.vault_signing import VaultNoteSigner
from kms_service.adapters.vault_tombstones import VaultTombstones, WithheldMasterKeys
from kms_service.audit_checkpoints import AuditCheckpoints
from kms_service.config import CheckpointSection, Config, IssuerSection, StoreSection
from kms_service.domain.errors import ConfigurationError
from kms_service.domain.ports import (
    ArtifactStore,
    AuditLog,
    CheckpointStore,
    Clock,
    MasterKeys,
)
from kms_service.observation import (
    lease_counter,
    master_key_surveyor,
    watch_audit,
    watch_transport,
    watch_vault,
)
from kms_service.policy_reload import PolicyReloader
from kms_service.rewrapping import rewrap_timers
from kms_service.rpc.access_service import AccessServicer
from kms_service.rpc.artifact_service import ArtifactServicer
from kms_service.rpc.authentication import Authenticator
from kms_service.rpc.error_table import reasons
from kms_service.rpc.health import OVERALL, Readiness
from kms_service.rpc.key_service import KeyServicer
from kms_service.rpc.master_key_service import MasterKeyServicer
from kms_service.rpc.model_service import ModelServicer
from kms_service.rpc.pipeline import Pipeline
from kms_service.rpc.policy_service import PolicyServicer
from kms_service.rpc.pool import FairShare
from kms_service.rpc.rates import Rates
from kms_service.rpc.registration import full_methods
from kms_service.rpc.server import CallPools, RpcServer, ServerLimits, TokenPort
from kms_service.rpc.tls import ReloadingCredentials, TlsFiles
from kms_service.rpc.watch_server import SERVICE as _WATCHES
from kms_service.rpc.watch_server import WatchLimits, WatchServer
from kms_service.service import Service, ServiceParts
from kms_service.status import Status
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.metrics_server import MetricsServer
from kms_service.telemetry.tracing import NoTracer, Tracer
from kms_service.timers import Timer
from kms_service.usecases.ask_policy import AskPolicy
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.browse_catalogue import BrowseCatalogue
from kms_service.usecases.checkpoint_audit import CheckpointAudit
from kms_service.usecases.create_model import CreateModel
from kms_service.usecases.create_project import CreateProject
from kms_service.usecases.create_version import CreateVersion
from kms_service.usecases.decision_journal import DecisionJournal, JournaledPolicy
from kms_service.usecases.destroy_version import DestroyVersion
from kms_service.usecases.expire_pending import ExpirePending
from kms_service.usecases.finalize_version import FinalizeVersion
from kms_service.usecases.get_master_key import GetMasterKey
from kms_service.usecases.lease_data_key import LeaseDataKey
from kms_service.usecases.list_leases import ListLeases
from kms_service.usecases.own_leases import OwnLeases
from kms_service.usecases.read_artifact import ReadArtifact
from kms_service.usecases.renew_lease import RenewLease
from kms_service.usecases.resolve_model import ResolveModel
from kms_service.usecases.revoke_leases import RevokeLeases
from kms_service.usecases.rewrap_data_keys import RewrapDataKeys
from kms_service.usecases.set_alias import SetAlias
from kms_service.usecases.shred_versions import ShredVersions
from kms_service.usecases.standing import Standing
from kms_service.usecases.sweep_orphans import SweepOrphans
from kms_service.usecases.upload_artifact import UploadArtifact
from kms_service.usecases.version_state import ChangeVersionState

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
_SWEEP_EVERY_S = 6 * 3600.0
_SHRED_EVERY_S = 60.0
_TOMBSTONES_EVERY_S = 60.0
_SHARE_OF_THREADS = 0.75

_MODELS = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]
_KEYS = key_service_pb2.DESCRIPTOR.services_by_name["KeyService"]
_MASTER_KEYS = master_key_service_pb2.DESCRIPTOR.services_by_name["MasterKeyService"]
_ACCESS = access_service_pb2.DESCRIPTOR.services_by_name["AccessService"]
_ARTIFACTS = artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"]
_POLICIES = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"]
_STANDARD: tuple[Any, ...] = (  # their stubs name another descriptor class
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
_SERVICES = (_MODELS, _KEYS, _MASTER_KEYS, _ARTIFACTS, _POLICIES, _ACCESS)


def build(config: Config, *, worker_metrics: Path | None = None) -> Service:
    """Everything that one serving process needs, constructed and not yet started.

    Vault need not answer: the service starts, says NOT_SERVING, and serves once it does.

    Args:
        worker_metrics: this is one of several workers on the same port, and serves its metrics on
            this Unix socket.

    Raises:
        ConfigurationError: certificate, key, policies or schema cannot be served with.
        StateUnavailable, StateCorrupt, StorageUnavailable, AuditUnavailable: the state on this
            machine cannot be used.
    """
    metrics = Metrics(
        list(full_methods((*_SERVICES, _WATCHES, *_STANDARD))),
        [code.name for code in grpc.StatusCode],
        reasons(),
    )
    credentials = ReloadingCredentials(tls_files(config), metrics)
    adapters = _adapters(config, metrics)
    watch_vault(metrics, adapters.vault, adapters.data_keys)
    watch_transport(metrics, adapters.transport)
    watch_audit(metrics, adapters.audit)
    checkpoints = _checkpoints(config, adapters, metrics)
    audit = CountedAuditLog(adapters.audit, metrics)
    server = config.server
    limits = ServerLimits(
        threads=server.threads,
        streams=server.artifact_streams,
        max_connection_age_s=server.max_connection_age_s,
        max_connection_age_grace_s=server.max_connection_age_grace_s,
    )
    pools = CallPools(limits)
    share = max(1, int(server.threads * _SHARE_OF_THREADS))
    authenticator = Authenticator(
        server.trust_domains, adapters.clock, metrics.cache("certificate"), adapters.tokens
    )
    watch = _watch_server(
        config, authenticator, adapters, metrics, shared_port=worker_metrics is not None
    )
    pipeline = Pipeline(
        timed(authenticator, metrics.steps.step("identity")),
        FairShare(pools.unary, share),
        metrics,
        adapters.tracer,
        Rates(server.calls_per_principal_s, server.calls_per_instance_s, boottime_s),
    )
    health = HealthServicer()
    readiness = _readiness(health, adapters, metrics)
    servicers = _servicers(config, adapters, audit, metrics)
    host, _, port = config.metrics.listen.rpartition(":")
    return Service(
        ServiceParts(
            watch=watch,
            rpc=RpcServer(
                server.listen,
                credentials.grpc,
                servicers,
                pipeline,
                health,
                pools,
                limits,
                _token_port(config, metrics),
                shared_ports=worker_metrics is not None,
            ),
            metrics=MetricsServer(
                worker_metrics or (host.strip("[]"), int(port)),
                metrics.registry,
                Status(readiness, adapters.audit, checkpoints, adapters.data_keys, metrics).pages(),
            ),
            readiness=readiness,
            timers=[
                *_timers(config, adapters, audit, readiness, metrics),
                *([checkpoints.timer] if checkpoints is not None else []),
            ],
            audit=audit,
            clock=adapters.clock,
            reload_policies=adapters.policy_reloader.load,
            closers=(
                partial(adapters.data_keys.flush, "stop"),
                adapters.clock.store_mark,
                adapters.journal.flush,
                *([checkpoints.ship_last] if checkpoints is not None else []),
                adapters.audit.close,
                *([adapters.audit_stream.close] if adapters.audit_stream is not None else []),
                adapters.vault.close,
                adapters.tracer.close,
                adapters.database.close,
            ),
            port_file=server.port_file,
        )
    )


def _watch_server(
    config: Config,
    authenticator: Authenticator,
    adapters: Adapters,
    metrics: Metrics,
    *,
    shared_port: bool,
) -> WatchServer | None:
    server, watch = config.server, config.watch
    if watch.listen is None:
        return None
    made = WatchServer(
        watch.listen,
        ReloadingCredentials(tls_files(config), metrics).grpc,  # each server takes its own
        authenticator,
        OwnLeases(database=adapters.database, clock=adapters.clock),
        adapters.database,
        metrics,
        WatchLimits(
            streams=watch.streams,
            heartbeat_s=watch.heartbeat_s,
            max_connection_age_s=server.max_connection_age_s,
            max_connection_age_grace_s=server.max_connection_age_grace_s,
        ),
        shared_port=shared_port,
    )
    metrics.observe_gauge(
        "modelkms_watches", "Streams of WatchLeases that are open", lambda: float(len(made))
    )
    return made


def _token_port(config: Config, metrics: Metrics) -> TokenPort | None:
    listen = config.server.token_listen
    if listen is None:
        return None
    return TokenPort(
        listen, ReloadingCredentials(tls_files(config), metrics, ask_for_certificate=False).grpc
    )


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


def open_tracer(config: Config) -> Tracer:
    """
    Raises:
        ConfigurationError: traces are wanted, and the extra is not installed.
    """
    if config.tracing.endpoint is None:
        return NoTracer()
    try:
        from kms_service.telemetry.opentelemetry import otlp
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"tracing.endpoint: needs {error.name}: pip install 'modelkms-server[tracing]'"
        ) from error
    return otlp(config.tracing.endpoint, config.tracing.sample_ratio)


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


def open_checkpoint_store(place: CheckpointSection) -> CheckpointStore:
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


def _adapters(config: Config, metrics: Metrics) -> Adapters:
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
    stream = None
    if config.audit.stream == "stdout":
        stream = AuditStream(sys.stdout.buffer, metrics.audit_stream_dropped.inc)
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
        journal=DecisionJournal(database),
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


def _servicers(
    config: Config, adapters: Adapters, audit: AuditLog, metrics: Metrics
) -> dict[ServiceDescriptor, object]:
    clock, store, steps = adapters.clock, adapters.store, metrics.steps
    database = TimedDatabase(adapters.database, steps.step("database"))
    policy = timed(adapters.policy, steps.step("policy"))
    keys = timed(adapters.master_keys, steps.step("vault"))
    transport = timed(adapters.transport, steps.step("key_transport"))
    gate = Gate(
        database=database,
        policy=JournaledPolicy(policy, adapters.journal),
        audit=timed(audit, steps.step("audit")),
        clock=clock,
    )
    return {
        _MODELS: ModelServicer(
            browse=BrowseCatalogue(gate=gate, database=database, policy=policy, clock=clock),
            create_project=CreateProject(
                gate=gate,
                database=database,
                master_keys=keys,
                clock=clock,
                master_key_template=config.vault.master_key_template,
            ),
            create_model=CreateModel(gate=gate, database=database, clock=clock),
            create_version=CreateVersion(
                gate=gate, database=database, master_keys=keys, transport=transport, clock=clock
            ),
            finalize_version=FinalizeVersion(
                gate=gate, database=database, store=store, clock=clock
            ),
            change_state=ChangeVersionState(gate=gate, database=database, clock=clock),
            destroy=DestroyVersion(gate=gate, database=database, clock=clock),
            set_alias=SetAlias(gate=gate, database=database, clock=clock),
            resolve_model=ResolveModel(gate=gate, store=store, clock=clock),
        ),
        _KEYS: KeyServicer(
            lease_data_key=LeaseDataKey(
                gate=gate,
                database=database,
                master_keys=adapters.data_keys,
                transport=transport,
                store=store,
                clock=clock,
            ),
            renew_lease=RenewLease(gate=gate, database=database, clock=clock),
            revoke_leases=RevokeLeases(gate=gate, database=database, clock=clock),
            list_leases=ListLeases(gate=gate, database=database, clock=clock),
            own_leases=OwnLeases(database=database, clock=clock),
            metrics=metrics,
        ),
        _MASTER_KEYS: MasterKeyServicer(
            rewrap=RewrapDataKeys(
                gate=gate,
                rewraps=timed(adapters.database.rewraps, steps.step("database")),
                rewrapper=timed(adapters.vault, steps.step("vault")),
                clock=clock,
            ),
            get_master_key=GetMasterKey(gate=gate, database=database, master_keys=keys),
        ),
        _ACCESS: AccessServicer(
            standing=Standing(gate=gate, database=database, clock=clock), metrics=metrics
        ),
        _POLICIES: PolicyServicer(
            AskPolicy(
                gate=gate,
                database=database,
                questions=CedarPolicyQuestions(adapters.policy),
                journal=adapters.journal,
                clock=clock,
            )
        ),
        _ARTIFACTS: ArtifactServicer(
            read_artifact=ReadArtifact(gate=gate, store=store),
            upload_artifact=UploadArtifact(gate=gate, store=store),
            metrics=metrics,
        ),
    }


def _readiness(health: HealthServicer, adapters: Adapters, metrics: Metrics) -> Readiness:
    everything = ("vault", "database")
    return Readiness(
        health,
        {"vault": adapters.data_keys.probe, "database": adapters.database.probe},
        {
            OVERALL: everything,
            _KEYS.full_name: everything,
            _MASTER_KEYS.full_name: everything,
            # Looking, resolving and ciphertext need no Vault.
            _MODELS.full_name: ("database",),
            _ARTIFACTS.full_name: ("database",),
            _POLICIES.full_name: ("database",),
            _ACCESS.full_name: ("database",),
            HEALTH: (),
        },
        metrics,
    )


def _timers(
    config: Config, adapters: Adapters, audit: AuditLog, readiness: Readiness, metrics: Metrics
) -> list[Timer]:
    expire = ExpirePending(
        database=adapters.database,
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
        database=adapters.database,
        store=adapters.store,
        audit=audit,
        clock=adapters.clock,
        grace=timedelta(seconds=config.store.orphan_grace_s),
    )
    shred = ShredVersions(
        database=adapters.database,
        tombstones=adapters.tombstones,
        store=adapters.store,
        audit=audit,
        clock=adapters.clock,
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
        Timer("expire-pending", _EXPIRE_EVERY_S, lambda: metrics.versions_expired.inc(expire())),
        Timer("sweep-orphans", _SWEEP_EVERY_S, lambda: metrics.orphans_swept.inc(sweep())),
        Timer("shred", _SHRED_EVERY_S, lambda: metrics.versions_destroyed.inc(shred())),
        Timer("tombstones", _TOMBSTONES_EVERY_S, adapters.tombstones.uids),
        *rewrapping,
    ]
    if adapters.tokens is not None:
        timers.append(Timer("issuers", _ISSUERS_EVERY_S, _key_refresher(adapters.tokens, metrics)))
    return timers


def _key_refresher(tokens: TokenVerifier, metrics: Metrics) -> Callable[[], None]:
    def refresh() -> None:
        metrics.issuer_keys_current.set(tokens.refresh_keys())

    return refresh


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


def _checkpoints(config: Config, adapters: Adapters, metrics: Metrics) -> AuditCheckpoints | None:
    place = config.audit.checkpoints
    if place is None:
        return None
    return AuditCheckpoints(
        CheckpointAudit(
            chain=adapters.audit,
            database=adapters.database,
            signer=note_signer(adapters.vault, place),
            store=open_checkpoint_store(place),
            clock=adapters.clock,
            origin=place.origin,
        ),
        adapters.audit,
        place.every_s,
        metrics,
    )
