"""What the use cases need of the world: small Protocols, named for what is wanted.

Adapters raise only errors of `domain.errors`: Unavailable, Throttled, Conflict, Corrupt and
WrongState families; "not there" is `None` where it is an ordinary answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from kms_service.domain.audit import AuditRecord, ChainHead
from kms_service.domain.backups import Backup
from kms_service.domain.catalogue import Alias, Model, Project, Version, WrappedDataKey
from kms_service.domain.decisions import AccessRequest, Action, Decision, RecordedDecision, Resource
from kms_service.domain.destruction import Moment, Tombstone
from kms_service.domain.errors import ServiceError
from kms_service.domain.identity import Principal, VerifiedToken
from kms_service.domain.leases import Lease
from kms_service.domain.names import (
    AliasName,
    LeaseName,
    ModelName,
    ProjectName,
    RewrapName,
    VersionName,
)
from kms_service.domain.policy import Explanation, PolicySetFiles, PolicySetView, Rehearsal
from kms_service.domain.rewrapping import (
    Finished,
    NothingYet,
    Rewrap,
    RewrapBatch,
    RewrapFailure,
    Rewrapped,
)
from kms_service.domain.secret import SecretBytes
from kms_service.domain.standing import Block, Freeze
from kms_service.domain.trims import Trim

T = TypeVar("T")


class Clock(Protocol):
    """Logical time (DESIGN §6 "time"): never goes back."""

    def now(self) -> datetime:
        """Aware, UTC."""


class Liveness(Protocol):
    """Whether anybody still waits for this call's answer. A handler is not stopped when its
    caller goes away, so use cases ask before they call Vault and before they release a key."""

    def check(self) -> None:
        """
        Raises:
            DeadlineExceeded: the deadline is over, or the caller cancelled or went away.
        """


# --- master keys (Vault) --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MasterKeyState:
    """A transit key as Vault tells it."""

    name: str
    latest_version: int
    min_decryption_version: int
    latest_version_create_time: datetime
    auto_rotate_period: timedelta | None


class MasterKeys(Protocol):
    """Master keys in Vault: wraps and unwraps data keys; never shows a master key."""

    def generate_data_key(
        self, master_key: str, context: bytes
    ) -> tuple[SecretBytes, WrappedDataKey]:
        """A fresh 32-byte data key from Vault's random source, and its wrapped form.

        Raises:
            MasterKeyMisconfigured: the transit key is missing, or not derived.
            VaultUnavailable, VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        """The 32-byte data key.

        Raises:
            KeyRecordCorrupt: wrapped under another context, or damaged.
            WrappingVersionUnusable: its master-key version is below min_decryption_version,
                or newer than Vault knows.
            and as `generate_data_key`.
        """

    def describe(self, master_key: str) -> MasterKeyState:
        """State of the transit key, checked to be aes256-gcm96, derived, not exportable.

        Raises: as `generate_data_key`.
        """

    def probe(self) -> None:
        """Returns if Vault answers, unsealed and active; cheap.

        Raises:
            VaultUnavailable, VaultSealed.
        """


class Unwrapping(Protocol):
    """The one thing that leasing wants of master keys."""

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        """As `MasterKeys.unwrap`; the caller's own copy, to be wiped."""


class Tombstones(Protocol):
    """What was destroyed, kept outside the database: a backup of that one cannot bring it back."""

    def write(self, tombstone: Tombstone) -> None:
        """Durable when it returns; never changed again. One that is there already stays.

        Raises:
            VaultUnavailable, VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """

    def uids(self) -> frozenset[str]:
        """Of all destroyed versions.

        Raises: as `write`.
        """

    def holds(self, uid: str) -> bool:
        """Whether there is one, as far as was known when they were last read.

        Raises: as `write`, if they were never read.
        """


class Rewrapper(Protocol):
    """Moves data keys under the newest version of their master key, inside Vault."""

    def describe(self, master_key: str) -> MasterKeyState:
        """As `MasterKeys.describe`."""

    @property
    def rewrap_batch_size(self) -> int:
        """How many data keys one call of `rewrap` should be given; it learns."""

    def rewrap(
        self, master_key: str, keys: Sequence[tuple[WrappedDataKey, bytes]]
    ) -> Sequence[WrappedDataKey | ServiceError]:
        """Each data key (with its context) under the newest version of the master key, in order;
        an error in place of one that cannot be. Nobody sees a data key.

        Raises: as `MasterKeys.generate_data_key`; then none was rewrapped.
        """


# --- state (database) -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page (AIP-158). `next_page_token` is empty at the end."""

    items: Sequence[T]
    next_page_token: str


class ProjectTable(Protocol):
    def get(self, name: ProjectName) -> Project | None: ...
    def insert(self, project: Project) -> None:
        """
        Raises:
            ResourceExists: the name is taken.
        """

    def list(self, page_size: int, page_token: str) -> Page[Project]:
        """By name.

        Raises:
            InvalidField: the token is not one of ours.
        """


class ModelTable(Protocol):
    def get(self, name: ModelName) -> Model | None: ...
    def insert(self, model: Model) -> None:
        """
        Raises:
            ResourceExists: the name is taken.
        """

    def list(self, parent: ProjectName, page_size: int, page_token: str) -> Page[Model]: ...


class VersionTable(Protocol):
    def get(self, name: VersionName) -> Version | None: ...
    def get_by_request(self, model: ModelName, publisher: str, request_id: str) -> Version | None:
        """The version that this publisher's request id made in this model (AIP-155)."""

    def next_number(self, model: ModelName) -> int:
        """1 more than the highest number ever given in this model, 1 for the first."""

    def insert(self, version: Version) -> None:
        """
        Raises:
            ConcurrentUpdate: number, uid or request id is taken.
        """

    def update(self, version: Version) -> None:
        """Replace the row whose revision is `version.revision - 1`.

        Raises:
            ConcurrentUpdate: the row has another revision.
        """

    def list(self, parent: ModelName, page_size: int, page_token: str) -> Page[Version]:
        """Newest (highest number) first."""

    def pending_before(self, created_before: datetime, limit: int) -> Sequence[Version]:
        """At most `limit` PENDING versions of any project created before then, oldest first."""

    def never_finalized(self, created_after: datetime, limit: int) -> Sequence[Version]:
        """At most `limit` DESTROYED versions of any project without a pin, oldest first."""

    def using_artifacts(self, artifact_ids: Sequence[str]) -> frozenset[str]:
        """Which of these (at most 500) belong to a version that is not DESTROYED, or one whose
        artifact was to be kept."""

    def scan(self, after: VersionName | None, limit: int) -> Sequence[Version]:
        """At most `limit` versions of all projects behind `after`, by name."""

    def destroy_due(self, moment: Moment, limit: int) -> Sequence[Version]:
        """At most `limit` versions of any project whose destruction is confirmed and due."""

    def count_by_master_key_version(self, project: ProjectName) -> dict[int, int]:
        """How many data keys are wrapped under which master-key version. DESTROYED versions
        have none."""

    def count_under_master_key(self, master_key: str) -> dict[int, int]:
        """The same, of all projects that share a master key."""


class AliasTable(Protocol):
    def get(self, name: AliasName) -> Alias | None: ...
    def put(self, alias: Alias) -> None:
        """Insert or replace."""

    def list(self, parent: ModelName, page_size: int, page_token: str) -> Page[Alias]:
        """By alias id."""

    def of_versions(self, parent: ModelName) -> Mapping[int, tuple[str, ...]]:
        """Sorted alias ids by version number."""


@dataclass(frozen=True, slots=True)
class LeaseFilter:
    """Which leases; None means any. `live_at` leaves out those ended by then."""

    project: str | None = None
    principal: str | None = None
    instance: str | None = None
    model: str | None = None
    number: int | None = None
    live_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Revoked:
    """A lease that was ended, and the number of what ended it."""

    revocation: int
    lease: LeaseName


class LeaseTable(Protocol):
    def get(self, name: LeaseName) -> Lease | None: ...
    def insert(self, lease: Lease) -> None: ...
    def renew(self, lease: Lease) -> None:
        """Store `expire_time` and `renewals` of a lease whose stored `renewals` is one less.

        Raises:
            ConcurrentUpdate: it was renewed or revoked meanwhile.
        """

    def revoke(self, which: LeaseFilter | LeaseName, now: datetime) -> int:
        """End the matching live leases; how many ended by this call. All get the next revocation
        number."""

    def last_revocation(self) -> int:
        """The highest revocation number given; 0 at first. Numbers commit in their order."""

    def revoked_after(self, revocation: int, limit: int) -> Sequence[Revoked]:
        """At most `limit` leases with a higher revocation number, lowest first; with the last
        number of them, all that have it, `limit` or not."""

    def count(self, which: LeaseFilter) -> int: ...
    def list(self, which: LeaseFilter, page_size: int, page_token: str) -> Page[Lease]:
        """Newest first."""

    def count_live(self, now: datetime) -> int: ...


class Rewraps(Protocol):
    """Rewrap operations, and the work they share out. Each method is a transaction of its own,
    and bears any interleaving with others: a stored wrapped key is replaced only if it is still
    the one that was looked at."""

    def start(self, rewrap: Rewrap) -> Rewrap:
        """Store it, its `total` counted; or the one that is not done yet, if the project has one.

        Raises:
            StateUnavailable, StateCorrupt, StateConflict: here, and of every method.
        """

    def get(self, name: RewrapName) -> Rewrap | None: ...
    def latest(self, project: ProjectName) -> Rewrap | None:
        """The one started last."""

    def running(self) -> Sequence[Rewrap]:
        """All that are RUNNING, of any project, oldest first."""

    def change(self, name: RewrapName, change: Callable[[Rewrap], Rewrap]) -> Rewrap | None:
        """Store what `change` makes of it: of its state and rate. None: there is no such one."""

    def claim(
        self, name: RewrapName, size: int, now: datetime
    ) -> RewrapBatch | NothingYet | Finished | None:
        """At most `size` data keys that nobody else works on, for a while; what nobody came back
        from in that time is given out again. None: it is not RUNNING."""

    def settle(
        self,
        batch: RewrapBatch,
        rewrapped: Sequence[Rewrapped],
        failed: Sequence[RewrapFailure],
        now: datetime,
        *,
        whole: bool,
    ) -> int:
        """Store what became of a batch; how many wrapped keys were replaced: those that were
        changed or destroyed meanwhile stay as they are.

        Args:
            whole: nothing of the batch is left to do; else the rest is given out again.
        """

    def failures(self, name: RewrapName, limit: int) -> Sequence[RewrapFailure]: ...
    def keys_under_older(self, project: ProjectName, version: int) -> int:
        """How many data keys are under an older master-key version than this."""


class DecisionTable(Protocol):
    """The newest decisions, and when which principal was last seen doing what."""

    def record(self, decisions: Sequence[RecordedDecision]) -> None: ...

    def get(self, decision_id: str) -> RecordedDecision | None: ...

    def newest(self, limit: int) -> Sequence[RecordedDecision]:
        """Newest first."""

    def principals(self) -> Mapping[str, tuple[Principal, datetime]]:
        """Each that ever called, as it was when last seen, by id."""

    def last_uses(self, action: Action, resource: Resource) -> Mapping[str, datetime]:
        """When each principal was last permitted this; a project holds its models."""

    def prune(self, decisions: int, uses: int) -> None:
        """Keep only so many of the newest decisions and of the latest uses."""


class AuditHeadTable(Protocol):
    """Where each process's audit chain stands, so that a checkpoint by one lists all."""

    def put(self, head: ChainHead) -> None:
        """Insert or replace."""

    def list(self) -> Sequence[ChainHead]:
        """By chain."""


class BlockTable(Protocol):
    def get(self, principal: str) -> Block | None:
        """Also one that has ended."""

    def put(self, block: Block) -> None:
        """Insert or replace."""

    def delete(self, principal: str) -> bool:
        """Whether it was there."""

    def list(self, now: datetime, page_size: int, page_token: str) -> Page[Block]:
        """Those that hold, by principal."""


class FreezeTable(Protocol):
    def get(self, name: ProjectName) -> Freeze | None: ...
    def put(self, freeze: Freeze) -> None:
        """Insert or replace."""

    def delete(self, name: ProjectName) -> bool:
        """Whether it was there."""

    def list(self, page_size: int, page_token: str) -> Page[Freeze]:
        """By project."""


class BackupTable(Protocol):
    def get(self, backup_id: str) -> Backup | None: ...
    def put(self, backup: Backup) -> None:
        """Insert or replace."""

    def list(self, page_size: int, page_token: str) -> Page[Backup]:
        """Newest first."""

    def not_destroyed(self) -> Sequence[Backup]:
        """All that nobody declared destroyed, oldest first."""


class TrimTable(Protocol):
    def get(self, master_key: str) -> Trim | None:
        """Also one that cannot be confirmed any more."""

    def put(self, trim: Trim) -> None:
        """Insert or replace."""


class Transaction(Protocol):
    """One serializable transaction. Nothing is seen by others before it commits."""

    @property
    def projects(self) -> ProjectTable: ...
    @property
    def models(self) -> ModelTable: ...
    @property
    def versions(self) -> VersionTable: ...
    @property
    def aliases(self) -> AliasTable: ...
    @property
    def leases(self) -> LeaseTable: ...
    @property
    def decisions(self) -> DecisionTable: ...
    @property
    def audit_heads(self) -> AuditHeadTable: ...
    @property
    def blocks(self) -> BlockTable: ...
    @property
    def freezes(self) -> FreezeTable: ...
    @property
    def backups(self) -> BackupTable: ...
    @property
    def trims(self) -> TrimTable: ...


class Database(Protocol):
    def read(self) -> AbstractContextManager[Transaction]:
        """A consistent snapshot; writing in it is a programming error.

        Raises:
            StateUnavailable, StateCorrupt.
        """

    def write(self) -> AbstractContextManager[Transaction]:
        """Commits durably at the end of the block; rolls back on any exception.

        Raises:
            StateUnavailable, StateCorrupt.
            StateConflict: lost against another transaction; nothing was changed.
        """

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """`work` in a `write` transaction; the whole of it again, some times, while it loses
        against others. So what it does besides must bear repetition.

        Raises: as `write`, and what `work` raises.
        """

    def look(self, work: Callable[[Transaction], T]) -> T:
        """`work`, which writes nothing, in a consistent snapshot begun after this call. Those who
        look at the same time may share it, so `work` is short; it may run in another thread.

        Raises: as `read`, and what `work` raises.
        """

    def served_time(self) -> timedelta:
        """See `destruction.Moment.served`.

        Raises:
            StateUnavailable, StateCorrupt.
        """

    def scrub(self, *, again: bool = False) -> bool:
        """Leave no bytes of the wrapped keys of destroyed versions in the database's own files,
        if there may be any (or `again`: in any case); whether there was something to do. What the
        database has written elsewhere (backups, archived logs, freed blocks of the disk) is out of
        reach.

        Raises:
            StateUnavailable, StateCorrupt: not done; call again.
        """

    def probe(self) -> None:
        """Returns if the database answers and its schema is current.

        Raises:
            StateUnavailable, StateCorrupt.
        """


# --- identity -------------------------------------------------------------------------------------


class TokenVerifier(Protocol):
    def verify(self, token: str) -> VerifiedToken:
        """Who a bearer token is of. Verified once a token; its times at each call.

        Raises:
            TokenInvalid: it is not one of ours, not now, or not for us.
            IdentityProviderUnavailable: the issuer's keys cannot be had.
        """


# --- policy ---------------------------------------------------------------------------------------


class PolicyEngine(Protocol):
    def decide(self, request: AccessRequest) -> Decision:
        """Default deny; forbid wins; any evaluation error denies. Does not raise for a denial.

        Raises:
            PolicyUnavailable: no policy set is in force.
        """


class PolicyQuestions(Protocol):
    """What can be asked about the policy set in force. Each raises PolicyUnavailable if there is
    none."""

    def view(self) -> PolicySetView: ...

    def named_principals(self) -> Sequence[Principal]:
        """Those that policies, groups or canary cases name by a whole id."""

    def explain(self, request: AccessRequest, *, circumstances: bool) -> Explanation:
        """How a request stands, and why. Without `circumstances` those are taken as unknown."""

    def rehearse(self, files: PolicySetFiles, requests: Iterable[AccessRequest]) -> Rehearsal:
        """Decide `requests` under the set in force and under another."""


# --- artifacts ------------------------------------------------------------------------------------


class ArtifactWriter(Protocol):
    """One resumable upload, open for appending."""

    def append(self, data: bytes) -> None:
        """
        Raises:
            StorageUnavailable: could not be stored.
        """

    def commit(self) -> int:
        """Make what was appended durable; bytes stored from the beginning."""


class ArtifactStore(Protocol):
    """Objects by artifact id. Holds ciphertext only."""

    def stored_bytes(self, artifact_id: str) -> int | None:
        """Durable bytes of a published object or unfinished upload; None: neither is there.

        Raises:
            StorageUnavailable.
        """

    def resume(self, artifact_id: str, offset_bytes: int) -> AbstractContextManager[ArtifactWriter]:
        """Go on with an upload at `offset_bytes`; one writer at a time.

        Raises:
            UploadOffsetWrong: the stored upload ends elsewhere.
            ConcurrentUpdate: another writer has it open.
        """

    def read(self, artifact_id: str, offset_bytes: int, length_bytes: int) -> Iterator[bytes]:
        """The range, in chunks of at most 1 MiB; fewer bytes at the end of the object. Reads
        unfinished uploads too: the caller decides who may see them.

        Raises:
            ArtifactMissing: no such object.
            StorageUnavailable.
        """

    def publish(self, artifact_id: str) -> None:
        """Turn the upload into the object, durably and atomically. Idempotent."""

    def delete(self, artifact_id: str) -> None:
        """Remove object and upload, if there. Idempotent."""

    def link(self, artifact_id: str, valid_for: timedelta) -> str | None:
        """A presigned GET link, good for at least so long; None where the store cannot sign.

        Raises:
            StorageUnavailable: it can, but not now.
        """

    def stored_before(self, time: datetime) -> Iterator[str]:
        """Ids of the objects and uploads that were last written before then; in no order, an id
        twice if it has both. What is not named by an artifact id is not ours and left out.

        Raises:
            StorageUnavailable.
        """

    def probe(self) -> None:
        """Returns if the store is there and can be read; cheap.

        Raises:
            StorageUnavailable.
        """


# --- key transport --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientKey:
    """The client's ephemeral public key, checked (key-transport-v1 §3)."""

    suite: int
    public_key: bytes
    request_nonce: bytes


@dataclass(frozen=True, slots=True)
class KeyAnswerBinding:
    """What a key answer is bound to (key-transport-v1 §5)."""

    purpose: str
    lease: str
    version_uid: str
    pin: bytes
    lease_duration: timedelta


@dataclass(frozen=True, slots=True)
class EncryptedDataKey:
    """As in key_transport.proto."""

    suite: int
    session_id: bytes
    encrypted_secret: bytes
    nonce: bytes
    ciphertext: bytes


class KeyTransport(Protocol):
    def check(self, client_key: ClientKey) -> None:
        """
        Raises:
            RecipientKeyInvalid: not a key of its suite (called before Vault is).
        """

    def encrypt(
        self,
        data_key: SecretBytes,
        principal: str,
        client_key: ClientKey,
        binding: KeyAnswerBinding,
    ) -> EncryptedDataKey:
        """The data key, readable by the holder of the client key only."""


# --- audit ----------------------------------------------------------------------------------------


class AuditLog(Protocol):
    def append(self, record: AuditRecord) -> None:
        """Durable when it returns.

        Raises:
            AuditUnavailable: it is not, and nothing may be issued on its strength.
        """


class AuditChain(Protocol):
    @property
    def head(self) -> ChainHead | None:
        """Of this process's chain; None without a record."""


class NoteSigner(Protocol):
    def sign(self, text: str) -> bytes:
        """A signed note of `text`, checked.

        Raises:
            SigningKeyMisconfigured: the key is missing, or no Ed25519 key.
            VaultUnavailable, VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """


class CheckpointStore(Protocol):
    """A place that can be written once, apart from the audit log's."""

    def put(self, name: str, note: bytes) -> None:
        """Durable when it returns.

        Raises:
            StorageUnavailable: it is not, or something of that name is there already.
        """
