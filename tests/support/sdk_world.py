"""The real service in this process, but for Vault and policy: what the SDK is tested against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import modelkms
from google.protobuf.descriptor import ServiceDescriptor
from modelkms_api.v1 import (
    access_service_pb2,
    artifact_service_pb2,
    key_service_pb2,
    master_key_service_pb2,
    model_service_pb2,
)

from kms_service.domain.decisions import Action
from kms_service.domain.ports import ArtifactStore, TokenVerifier
from kms_service.rpc.access_service import AccessServicer
from kms_service.rpc.artifact_service import ArtifactServicer
from kms_service.rpc.error_table import reasons
from kms_service.rpc.key_service import KeyServicer
from kms_service.rpc.master_key_service import MasterKeyServicer
from kms_service.rpc.model_service import ModelServicer
from kms_service.rpc.registration import full_methods
from kms_service.telemetry.metrics import Metrics
from tests.support.server import RunningServer, running_server
from tests.unit.usecases.world import World


@dataclass
class SdkWorld:
    """A running service with the project `demo`; `publisher`, `reader` and `security` may what
    they should, `stranger` nothing."""

    world: World
    server: RunningServer
    folder: Path
    clients: ExitStack = field(default_factory=ExitStack)

    @property
    def artifacts(self) -> Path:
        """Where the service stores artifacts."""
        return self.folder / "world" / "artifacts"

    def profile(self, name: str) -> dict[str, object]:
        """Settings of an identity, with cache and state of its own."""
        home = self.folder / "home" / name
        if not home.exists():
            self.server.authority.client(name).write(home)
        return {
            "endpoint": f"localhost:{self.server.port}",
            "ca_file": home / "ca.pem",
            "certificate_file": home / "certificate.pem",
            "key_file": home / "key.pem",
            "project": "demo",
            "cache_dir": home / "cache",
            "state_dir": home / "state",
        }

    def client(self, name: str, **overrides: object) -> modelkms.Client:
        """A client of an identity, closed with the world."""
        client = modelkms.connect(None, observer=None, **{**self.profile(name), **overrides})
        return self.clients.enter_context(client)

    def stored(self) -> list[Path]:
        """Files of the artifact store."""
        return [path for path in self.artifacts.rglob("*") if path.is_file()]


@contextmanager
def sdk_world(
    folder: Path,
    template: Path,
    store: ArtifactStore | None = None,
    tokens: TokenVerifier | None = None,
) -> Iterator[SdkWorld]:
    """`store`: of artifacts, instead of a folder. `tokens`: then there is a token port."""
    (folder / "world").mkdir()
    world = World(folder / "world", template, store)
    world.publisher()
    world.reader("reader")
    world.reader("publisher")
    world.security()
    world.reader("security")
    for name in ("publisher", "reader", "security"):
        world.policy.grant(name, Action.GET_PROJECT, Action.GET_MODEL)
    world.policy.grant("security", Action.CREATE_PROJECT, Action.SET_ALIAS)
    try:
        with (
            running_server(folder / "server", servicers(world), tokens=tokens) as server,
            ExitStack() as clients,
        ):
            yield SdkWorld(world, server, folder, clients)
    finally:
        world.close()


def servicers(world: World) -> dict[ServiceDescriptor, object]:
    """As bootstrap.py makes them."""
    models, keys, master_keys, artifacts, access = (
        module.DESCRIPTOR.services_by_name[name]
        for module, name in (
            (model_service_pb2, "ModelService"),
            (key_service_pb2, "KeyService"),
            (master_key_service_pb2, "MasterKeyService"),
            (artifact_service_pb2, "ArtifactService"),
            (access_service_pb2, "AccessService"),
        )
    )
    services = (models, keys, master_keys, artifacts, access)
    metrics = Metrics(
        list(full_methods(services)), [code.name for code in grpc.StatusCode], reasons()
    )
    return {
        models: ModelServicer(
            browse=world.browse,
            create_project=world.create_project,
            create_model=world.create_model,
            create_version=world._create_version,
            finalize_version=world._finalize_version,
            change_state=world.states,
            destroy=world.destroy,
            set_alias=world.set_alias,
            resolve_model=world.resolve_model,
        ),
        keys: KeyServicer(
            lease_data_key=world._lease_data_key,
            renew_lease=world.renew_lease,
            revoke_leases=world.revoke_leases,
            list_leases=world.list_leases,
            own_leases=world.own_leases,
            metrics=metrics,
        ),
        access: AccessServicer(standing=world.standing, metrics=metrics),
        master_keys: MasterKeyServicer(
            get_master_key=world.get_master_key,
            rewrap=world.rewrap,
            trim=world.trim,
            backups=world.backups,
        ),
        artifacts: ArtifactServicer(
            read_artifact=world.read_artifact, upload_artifact=world.upload, metrics=metrics
        ),
    }
