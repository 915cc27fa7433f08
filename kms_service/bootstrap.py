"""The one place where things are put together: a configuration in, a service out.

`parts` opens what the configuration names, `background` holds what runs by itself.
"""

from __future__ import annotations

import kms_service.rpc.tls_environment  # noqa: F401 - before anything imports grpc

# isort: split
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2
from modelkms_api.v1 import (
    access_service_pb2,
    artifact_service_pb2,
    key_service_pb2,
    master_key_service_pb2,
    model_service_pb2,
    policy_service_pb2,
)

from kms_service.adapters.cedar_questions import CedarPolicyQuestions
from kms_service.adapters.clock import boottime_s
from kms_service.adapters.measured import CountedAuditLog, TimedDatabase, timed
from kms_service.audit_checkpoints import AuditCheckpoints
from kms_service.background import background_timers
from kms_service.config import Config
from kms_service.observation import watch_audit, watch_transport, watch_vault
from kms_service.parts import Adapters, note_signer, open_adapters, open_checkpoint_store, tls_files
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
from kms_service.rpc.tls import ReloadingCredentials
from kms_service.rpc.watch_server import SERVICE as _WATCHES
from kms_service.rpc.watch_server import WatchLimits, WatchServer
from kms_service.service import Service, ServiceParts
from kms_service.status import Status
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.metrics_server import MetricsServer
from kms_service.usecases.ask_policy import AskPolicy
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.backup_registry import BackupRegistry
from kms_service.usecases.browse_catalogue import BrowseCatalogue
from kms_service.usecases.checkpoint_audit import CheckpointAudit
from kms_service.usecases.create_model import CreateModel
from kms_service.usecases.create_project import CreateProject
from kms_service.usecases.create_version import CreateVersion
from kms_service.usecases.decision_journal import JournaledPolicy
from kms_service.usecases.destroy_version import DestroyVersion
from kms_service.usecases.finalize_version import FinalizeVersion
from kms_service.usecases.get_master_key import GetMasterKey
from kms_service.usecases.lease_data_key import LeaseDataKey
from kms_service.usecases.list_leases import ListLeases
from kms_service.usecases.own_leases import OwnLeases
from kms_service.usecases.read_artifact import ReadArtifact
from kms_service.usecases.record_policies import RecordPolicies
from kms_service.usecases.renew_lease import RenewLease
from kms_service.usecases.resolve_model import ResolveModel
from kms_service.usecases.revoke_leases import RevokeLeases
from kms_service.usecases.rewrap_data_keys import RewrapDataKeys
from kms_service.usecases.set_alias import SetAlias
from kms_service.usecases.standing import Standing
from kms_service.usecases.trim_master_key import TrimMasterKey
from kms_service.usecases.upload_artifact import UploadArtifact
from kms_service.usecases.version_state import ChangeVersionState

_SHARE_OF_THREADS = 0.75
_SHARE_OF_WATCHES = 0.75

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
    adapters = open_adapters(config, metrics)
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
        FairShare(
            pools.unary,
            share,
            server.calls_at_once_per_principal,
            server.calls_at_once_per_instance,
        ),
        metrics,
        adapters.tracer,
        Rates(server.calls_per_principal_s, server.calls_per_instance_s, boottime_s),
    )
    health = HealthServicer()
    readiness = _readiness(health, adapters, metrics)
    servicers = _servicers(config, adapters, metrics)
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
                _token_port(config, server.token_listen, metrics),
                shared_ports=worker_metrics is not None,
            ),
            metrics=MetricsServer(
                worker_metrics or (host.strip("[]"), int(port)),
                metrics.registry,
                Status(readiness, adapters.audit, checkpoints, adapters.data_keys, metrics).pages(),
            ),
            readiness=readiness,
            timers=[
                *background_timers(config, adapters, audit, readiness, metrics),
                *([checkpoints.timer] if checkpoints is not None else []),
            ],
            audit=audit,
            clock=adapters.clock,
            reload_policies=adapters.policy_reloader.load,
            record_policies=partial(
                adapters.policy_reloader.record_with,
                RecordPolicies(audit=audit, clock=adapters.clock),
            ),
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
            streams_of_principal=watch.streams_per_principal
            or max(1, int(watch.streams * _SHARE_OF_WATCHES)),
            heartbeat_s=watch.heartbeat_s,
            max_connection_age_s=server.max_connection_age_s,
            max_connection_age_grace_s=server.max_connection_age_grace_s,
        ),
        _token_port(config, watch.token_listen, metrics),
        shared_port=shared_port,
    )
    metrics.observe_gauge(
        "modelkms_watches", "Streams of WatchLeases that are open", lambda: float(len(made))
    )
    return made


def _token_port(config: Config, listen: str | None, metrics: Metrics) -> TokenPort | None:
    if listen is None:
        return None
    return TokenPort(
        listen, ReloadingCredentials(tls_files(config), metrics, ask_for_certificate=False).grpc
    )


def _servicers(
    config: Config, adapters: Adapters, metrics: Metrics
) -> dict[ServiceDescriptor, object]:
    clock, store, steps = adapters.clock, adapters.store, metrics.steps
    database = TimedDatabase(adapters.database, steps.step("database"))
    policy = timed(adapters.policy, steps.step("policy"))
    keys = timed(adapters.master_keys, steps.step("vault"))
    transport = timed(adapters.transport, steps.step("key_transport"))
    gate = Gate(
        database=database,
        policy=JournaledPolicy(policy, adapters.journal),
        audit=CountedAuditLog(adapters.audit, metrics, steps.step("audit")),
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
            trim=TrimMasterKey(gate=gate, database=database, master_keys=keys, clock=clock),
            backups=BackupRegistry(gate=gate, database=database, clock=clock),
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
