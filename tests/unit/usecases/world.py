"""A service without its edges: real use cases on a real database, a real artifact folder and the
real key transport; policy, time, audit and Vault's side under the test's control."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from modelkms_api.artifact import (
    DEFAULT_SEGMENT_BYTES,
    FLOE_HEADER_TAG_BYTES,
    FLOE_IV_BYTES,
    PinDigest,
    clear_prefix,
    floe_parameters,
)
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_ZIP, ArtifactHeader
from pysqlite3 import dbapi2 as sqlite

from kms_service.adapters.database import SqlDatabase
from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.adapters.vault_tombstones import WithheldMasterKeys
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import ArtifactPin, Model, Project, Version
from kms_service.domain.decisions import Action
from kms_service.domain.identity import Caller
from kms_service.domain.leases import Lease
from kms_service.domain.names import (
    AliasName,
    LeaseName,
    ModelName,
    ProjectName,
    Reference,
    VersionName,
)
from kms_service.domain.ports import ArtifactStore, ClientKey, LeaseFilter, Liveness
from kms_service.usecases.answers import CreatedVersion, FinalizedVersion, LeasedDataKey, LeaseView
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.backup_registry import BackupRegistry
from kms_service.usecases.browse_catalogue import BrowseCatalogue
from kms_service.usecases.create_model import CreateModel
from kms_service.usecases.create_project import CreateProject
from kms_service.usecases.create_version import CreateVersion
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
from kms_service.usecases.rewrap_data_keys import RewrapDataKeys, RewrapWorker
from kms_service.usecases.set_alias import SetAlias
from kms_service.usecases.shred_versions import ShredVersions
from kms_service.usecases.standing import Standing
from kms_service.usecases.trim_master_key import TrimMasterKey
from kms_service.usecases.upload_artifact import UploadArtifact
from kms_service.usecases.version_state import ChangeVersionState
from tests.support import key_transport_opener as opener
from tests.support.fake_master_keys import FakeMasterKeys
from tests.support.usecase_fakes import (
    ManualClock,
    MemoryAudit,
    MemoryTombstones,
    RewrapCounts,
    ScriptedPolicy,
    Waiting,
    WatchedDatabase,
    WatchedMasterKeys,
    WatchedStore,
    caller,
)
from tests.unit.usecases.real_parts import open_database, open_store

CHUNK = 1 << 20


class World:
    """Has the project `demo` with its master key, and nobody permitted anything."""

    def __init__(self, folder: Path, template: Path, store: ArtifactStore | None = None) -> None:
        """`store`: instead of a folder."""
        folder.mkdir(exist_ok=True)
        self.artifacts = folder / "artifacts"
        self.folder = folder
        self.pending_ttl = timedelta(days=7)
        self.clock = ManualClock()
        self.policy = ScriptedPolicy()
        self.audit = MemoryAudit()
        self.vault = FakeMasterKeys()
        self.tombstones = MemoryTombstones()
        self.master_keys = WatchedMasterKeys(WithheldMasterKeys(self.vault, self.tombstones))
        self._sql = open_database(folder, template)
        self._sql_url = f"sqlite:///{folder / 'state.db'}"
        self.database = WatchedDatabase(self._sql, self.clock.served)
        self.store = WatchedStore(store or open_store(folder))
        self.transport = HpkeKeyTransport()
        self._construct()

        self.make_master_key("modelkms-demo")
        with self.database.write() as tx:
            name = ProjectName("demo")
            tx.projects.insert(Project(name, "modelkms-demo", self.clock.now()))

    def _construct(self) -> None:
        gate = Gate(database=self.database, policy=self.policy, audit=self.audit, clock=self.clock)
        state: dict[str, Any] = {"gate": gate, "database": self.database, "clock": self.clock}
        keys: dict[str, Any] = {"master_keys": self.master_keys, "transport": self.transport}

        self.create_project = CreateProject(
            **state, master_keys=self.master_keys, master_key_template="modelkms-{project}"
        )
        self.create_model = CreateModel(**state)
        self.browse = BrowseCatalogue(**state, policy=self.policy)
        self.upload = UploadArtifact(gate=gate, store=self.store)
        self.read_artifact = ReadArtifact(gate=gate, store=self.store)
        self.states = ChangeVersionState(**state)
        self.destroy = DestroyVersion(**state)
        self.set_alias = SetAlias(**state)
        self.resolve_model = ResolveModel(gate=gate, store=self.store, clock=self.clock)
        self.renew_lease = RenewLease(**state)
        self.revoke_leases = RevokeLeases(**state)
        self.list_leases = ListLeases(**state)
        self.rewraps = self._sql.rewraps
        self.rewrap = RewrapDataKeys(
            gate=gate, rewraps=self.rewraps, rewrapper=self.vault, clock=self.clock
        )
        self.rewrap_counts = RewrapCounts()
        self.rewrap_worker = RewrapWorker(
            rewraps=self.rewraps,
            rewrapper=self.vault,
            audit=self.audit,
            clock=self.clock,
            counters=self.rewrap_counts,
        )
        self.get_master_key = GetMasterKey(
            gate=gate, database=self.database, master_keys=self.master_keys
        )
        self.expire_pending = ExpirePending(
            database=self.database,
            store=self.store,
            audit=self.audit,
            clock=self.clock,
            pending_ttl=self.pending_ttl,
        )
        self.standing = Standing(**state)
        self.backups = BackupRegistry(**state)
        self.trim = TrimMasterKey(**state, master_keys=self.master_keys)
        self.own_leases = OwnLeases(database=self.database, clock=self.clock)
        self.shred = ShredVersions(
            database=self.database,
            tombstones=self.tombstones,
            store=self.store,
            audit=self.audit,
            clock=self.clock,
        )
        self._create_version = CreateVersion(**state, **keys)
        self._finalize_version = FinalizeVersion(**state, store=self.store)
        self._lease_data_key = LeaseDataKey(**state, **keys, store=self.store)

    def close(self) -> None:
        self._sql.close()

    def execute(self, statement: str) -> None:
        """SQL past all use cases, as who can write the database has it."""
        with closing(sqlite.connect(str(self.folder / "state.db"), timeout=10)) as connection:
            connection.execute(statement)
            connection.commit()

    def reopen_database(self) -> None:
        """As a service that starts again does."""
        self._sql.close()
        self._sql = self.database.inner = SqlDatabase(self._sql_url)

    # --- who may what ----------------------------------------------------------------------------

    def publisher(self, name: str = "publisher") -> None:
        self.policy.grant(
            name,
            Action.CREATE_VERSION,
            Action.CREATE_MODEL,
            Action.REKEY_VERSION,
            Action.SET_ALIAS,
            Action.GET_VERSION,
        )

    def reader(self, name: str = "reader") -> Caller:
        self.policy.grant(name, Action.LEASE_DATA_KEY, Action.RESOLVE_MODEL, Action.GET_VERSION)
        return caller(name)

    def security(self, name: str = "security") -> Caller:
        self.policy.grant(
            name,
            Action.ENABLE_VERSION,
            Action.DISABLE_VERSION,
            Action.DESTROY_VERSION,
            Action.CONFIRM_DESTROY_VERSION,
            Action.LIST_LEASES,
            Action.REVOKE_LEASES,
            Action.GET_MASTER_KEY,
            Action.BLOCK_PRINCIPAL,
            Action.UNBLOCK_PRINCIPAL,
            Action.LIST_BLOCKS,
            Action.FREEZE_PROJECT,
            Action.UNFREEZE_PROJECT,
            Action.LIST_FREEZES,
            Action.LIST_BACKUPS,
            Action.REQUEST_TRIM,
            Action.CONFIRM_TRIM,
            Action.DECLARE_BACKUP_DESTROYED,
            Action.REWRAP_DATA_KEYS,
        )
        return caller(name)

    def make_master_key(self, name: str) -> None:
        self.vault.make(name)

    # --- the story, with what a test does not care about filled in -------------------------------

    def create_version(
        self,
        who: Caller,
        model: ModelName,
        *,
        request_id: str | None = None,
        client: Client | None = None,
        client_key: ClientKey | None = None,
        liveness: Liveness | None = None,
    ) -> CreatedVersion:
        return self._create_version(
            who,
            model,
            str(uuid.uuid4()) if request_id is None else request_id,
            client_key or (client or Client()).offer(),
            liveness=liveness or Waiting(),
        )

    def upload_bytes(self, version: Version, data: bytes, *, offset: int = 0) -> None:
        chunks = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
        who = _publisher_of(version)
        self.upload.write(who, version.name, offset, chunks, liveness=Waiting())

    def upload_whole(self, version: Version, size: int = 5000) -> ArtifactPin:
        data, pin = artifact_of(version, size)
        self.upload_bytes(version, data)
        return pin

    def finalize(
        self, who: Caller, name: VersionName, pin: ArtifactPin, *, promote: bool = False
    ) -> FinalizedVersion:
        return self._finalize_version(who, name, pin, promote, liveness=Waiting())

    def publish(
        self,
        model: ModelName,
        *,
        promote: bool = False,
        request_id: str | None = None,
        size: int = 5000,
    ) -> FinalizedVersion:
        """A version of `publisher`, finalized."""
        who = caller("publisher")
        version = self.create_version(who, model, request_id=request_id).version.version
        return self.finalize(who, version.name, self.upload_whole(version, size), promote=promote)

    def lease(
        self,
        who: Caller,
        reference: Reference,
        *,
        client: Client | None = None,
        client_key: ClientKey | None = None,
        attributes: Mapping[str, str] | None = None,
        ttl: timedelta | None = None,
        liveness: Liveness | None = None,
    ) -> LeasedDataKey:
        return self._lease_data_key(
            who,
            reference,
            client_key or (client or Client()).offer(),
            attributes=attributes or {},
            ttl=ttl,
            liveness=liveness or Waiting(),
        )

    def renew(self, who: Caller, view: LeaseView, ttl: timedelta | None = None) -> LeaseView:
        return self.renew_lease(who, view.lease.name, ttl)

    def read(self, who: Caller, name: VersionName, offset: int = 0, length: int = 0) -> bytes:
        chunks = self.read_artifact(who, name, offset, length, liveness=Waiting())
        return b"".join(chunks)

    # --- what is stored --------------------------------------------------------------------------

    def version(self, name: VersionName) -> Version | None:
        with self.database.read() as tx:
            return tx.versions.get(name)

    def model(self, name: ModelName) -> Model | None:
        with self.database.read() as tx:
            return tx.models.get(name)

    def stored_lease(self, name: LeaseName) -> Lease | None:
        with self.database.read() as tx:
            return tx.leases.get(name)

    def list_leases_past_policy(self) -> list[Lease]:
        with self.database.read() as tx:
            return list(tx.leases.list(LeaseFilter("demo"), 1000, "").items)

    def live_leases(self) -> int:
        with self.database.read() as tx:
            return tx.leases.count_live(self.clock.now())

    def unwrap(self, version: Version) -> bytes:
        """The data key, past all use cases."""
        context = data_key_context(version.name.parent, version.uid)
        key = self.vault.unwrap("modelkms-demo", version.wrapped_key, context)
        return key.reveal()


class Client:
    """The other end of key transport, by the reference opener."""

    def __init__(self, suite: int = 1) -> None:
        self._key = opener.PrivateKey.from_seed(suite, os.urandom(32))
        self._nonce = b""

    def offer(self) -> ClientKey:
        self._nonce = os.urandom(32)
        return ClientKey(self._key.suite, self._key.public_bytes, self._nonce)

    def open_published(self, created: CreatedVersion, who: Caller) -> bytes:
        aad = opener.aad("publish", self._nonce, "", created.version.version.uid, b"", 0)
        return self._open(created, who, aad)

    def open_leased(self, leased: LeasedDataKey, who: Caller) -> bytes:
        version = leased.version.version
        assert version.pin is not None
        pin = opener.pin(version.pin.length_bytes, version.pin.floe_header_tag, version.pin.digest)
        duration_ms = leased.lease_duration // timedelta(milliseconds=1)
        lease = str(leased.lease.lease.name)
        aad = opener.aad("lease", self._nonce, lease, version.uid, pin, duration_ms)
        return self._open(leased, who, aad)

    def _open(self, answer: CreatedVersion | LeasedDataKey, who: Caller, aad: bytes) -> bytes:
        encrypted, public_key = answer.data_key, self._key.public_bytes
        info = opener.info(self._key.suite, who.principal.id, public_key, encrypted.session_id)
        secret = self._key.open_secret(encrypted.encrypted_secret, info)
        return opener.open_data_key(secret, encrypted.nonce, encrypted.ciphertext, aad)


def artifact_of(
    version: Version,
    size: int = 5000,
    *,
    name: VersionName | None = None,
    uid: str | None = None,
    artifact_id: str | None = None,
) -> tuple[bytes, ArtifactPin]:
    """A file with the clear header of `version` (or with one thing another), `size` bytes of
    what stands for ciphertext (the service cannot tell), and its pin."""
    header = ArtifactHeader(
        version=str(name or version.name),
        version_uid=uid or version.uid,
        artifact_id=artifact_id or version.artifact_id,
        payload_kind=PAYLOAD_KIND_ZIP,
        segment_length_bytes=DEFAULT_SEGMENT_BYTES,
    )
    tag = os.urandom(FLOE_HEADER_TAG_BYTES)
    data = b"".join(
        (
            clear_prefix(header),
            floe_parameters(DEFAULT_SEGMENT_BYTES),
            os.urandom(FLOE_IV_BYTES),
            tag,
            os.urandom(size),
        )
    )
    digest = PinDigest()
    digest.update(data)
    return data, ArtifactPin(len(data), tag, digest.digest())


def stable(model: ModelName) -> AliasName:
    return AliasName(model.project, model.model, "stable")


def _publisher_of(version: Version) -> Caller:
    who = caller(version.publisher.rpartition("/")[2])
    return replace(who, principal=replace(who.principal, id=version.publisher))


def worlds(folder: Path, template: Path) -> Iterator[World]:
    world = World(folder, template)
    try:
        yield world
    finally:
        world.close()
