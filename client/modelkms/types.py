"""What the SDK tells: frozen values, each with `as_dict()` for `--json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from modelkms.reference import Reference, people_form


class Info:
    """Base of the values; fields become JSON in the obvious way."""

    __slots__ = ()

    def as_dict(self) -> dict[str, object]:
        """Fields by name: times in ISO 8601, durations in seconds, bytes in hexadecimal."""
        assert dataclasses.is_dataclass(self)
        return {part.name: _plain(getattr(self, part.name)) for part in dataclasses.fields(self)}


def _plain(value: object) -> object:
    match value:
        case Info():
            return value.as_dict()
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case tuple() | list():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case _:
            return value


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long step has come. `total_bytes` is None where it is not known."""

    step: str
    done_bytes: int
    total_bytes: int | None


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class PinInfo(Info):
    """What identifies a stored artifact (artifact-v1 §6): 32-byte tag, 32-byte digest."""

    length_bytes: int
    floe_header_tag: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class ProjectInfo(Info):
    name: str
    master_key: str
    create_time: datetime | None

    @property
    def id(self) -> str:
        return self.name.removeprefix("projects/")


@dataclass(frozen=True, slots=True)
class ModelInfo(Info):
    name: str
    create_time: datetime | None
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """`camera/fd`."""
        return people_form(self.name)


@dataclass(frozen=True, slots=True)
class DestructionInfo(Info):
    """What was decided about a version's end. `confirmed_by` is empty until another officer did;
    `destroy_time` is None until it is done."""

    due_time: datetime | None
    scheduled_by: str
    confirmed_by: str
    delete_artifact: bool
    destroy_time: datetime | None


@dataclass(frozen=True, slots=True)
class VersionInfo(Info):
    """One version. `state`: PENDING, ENABLED, DISABLED, DESTROY_SCHEDULED, DESTROYED, UNKNOWN."""

    name: str
    uid: str
    state: str
    create_time: datetime | None
    finalize_time: datetime | None
    publisher: str
    pin: PinInfo | None
    aliases: tuple[str, ...]
    artifact_id: str
    destruction: DestructionInfo | None = None

    @property
    def number(self) -> int:
        number = Reference.parse(self.name).number
        assert number is not None  # a version's name has one: checked where it is read
        return number

    @property
    def reference(self) -> str:
        """`camera/fd@3`."""
        return people_form(self.name)

    def as_dict(self) -> dict[str, object]:
        return {**super(VersionInfo, self).as_dict(), "reference": self.reference}


@dataclass(frozen=True, slots=True)
class AliasInfo(Info):
    name: str
    version: str
    update_time: datetime | None

    @property
    def id(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def version_reference(self) -> str:
        """`camera/fd@3`."""
        return people_form(self.version)


@dataclass(frozen=True, slots=True)
class LeaseInfo(Info):
    """A lease. `state` is LIVE, EXPIRED, REVOKED or UNKNOWN, as of the answer."""

    name: str
    version: str
    principal: str
    instance: str
    issue_time: datetime | None
    expire_time: datetime | None
    absolute_end_time: datetime | None
    renewals: int
    state: str
    revoke_time: datetime | None

    @property
    def id(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def version_reference(self) -> str:
        """`camera/fd@3`."""
        return people_form(self.version)


@dataclass(frozen=True, slots=True)
class LeaseEvent:
    """What happened to the lease of an opened model.

    Attributes:
        kind: `renewed`; `replaced`, by a new one of the same version; `offline`: the service
            cannot be reached, and what is open stays open until `until`; `online` again; `ended`:
            the model can no longer be used, and `error` says why.
        reference: `camera/fd@3`.
        lease: resource name.
        error: of `offline` and `ended`.
        until: of `offline`.
    """

    kind: str
    reference: str
    lease: str
    error: Exception | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class BlockInfo(Info):
    """A blocked principal. `until_time`: when it ends by itself; None: when it is taken off."""

    principal: str
    reason: str
    blocked_by: str
    create_time: datetime | None
    until_time: datetime | None


@dataclass(frozen=True, slots=True)
class FreezeInfo(Info):
    """A frozen project."""

    project: str
    reason: str
    frozen_by: str
    create_time: datetime | None

    @property
    def id(self) -> str:
        return self.project.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class TrimInfo(Info):
    """That versions of a master key below `oldest_version` are to be destroyed in Vault."""

    name: str
    vault_key: str
    oldest_version: int
    requested_by: str
    confirmed_by: str
    create_time: datetime | None
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class BackupInfo(Info):
    """A backup of the service's database. `oldest_versions`: the lowest master-key version that it
    needs, by Vault key; if it is not `complete`, it may need any. `destroyed_by` is empty while
    nobody declared it destroyed."""

    name: str
    location: str
    create_time: datetime | None
    complete: bool
    oldest_versions: dict[str, int]
    destroyed_by: str
    destroy_reason: str
    destroy_time: datetime | None

    @property
    def id(self) -> str:
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class MasterKeyInfo(Info):
    """A project's master key. `keys_under_version`: data keys by master-key version."""

    name: str
    vault_key: str
    latest_version: int
    min_decryption_version: int
    latest_version_create_time: datetime | None
    auto_rotate_period: timedelta | None
    keys_under_version: dict[int, int]


@dataclass(frozen=True, slots=True)
class RewrapFailureInfo(Info):
    """A data key that could not be moved, and the stable reason why."""

    version: str
    reason: str

    @property
    def version_reference(self) -> str:
        """`camera/fd@3`."""
        return people_form(self.version)


@dataclass(frozen=True, slots=True)
class RewrapInfo(Info):
    """A rewrap of a project's data keys.

    Attributes:
        state: RUNNING, PAUSED, DONE or UNKNOWN.
        target_version: data keys under an older master-key version than this are moved.
        keys_per_second_limit: of all replicas together; 0: none.
        total_keys: to be moved when it started.
        keys_per_second: lately; 0: not known.
        remaining: how long the rest will take; None: not known.
        failures: at most 100 of them.
    """

    name: str
    done: bool
    state: str
    vault_key: str
    target_version: int
    started_by: str
    keys_per_second_limit: int
    total_keys: int
    rewrapped_keys: int
    failed_keys: int
    left_keys: int
    keys_per_second: float
    remaining: timedelta | None
    create_time: datetime | None
    update_time: datetime | None
    finish_time: datetime | None
    failures: tuple[RewrapFailureInfo, ...]


@dataclass(frozen=True, slots=True)
class Pushed(Info):
    """What a push did. `stable_version` is the resource name that `@stable` points to now."""

    version: VersionInfo
    stable_version: str
    resumed: bool = False

    @property
    def promoted(self) -> bool:
        """Whether readers of the unversioned reference get this version."""
        return self.version.name == self.stable_version

    @property
    def stable_reference(self) -> str:
        """`camera/fd@3`; empty if there is no stable version."""
        return people_form(self.stable_version)


@dataclass(frozen=True, slots=True)
class Rekeyed(Info):
    """What a rekey did: the new version, and the resource name of the old one, disabled."""

    version: VersionInfo
    old_version: str

    @property
    def old_reference(self) -> str:
        """`camera/fd@3`."""
        return people_form(self.old_version)


@dataclass(frozen=True, slots=True)
class Exposure(Info):
    """The leases by which one holder has had one version's key.

    Attributes:
        version: resource name.
        leases: how many.
        first_time, last_time: when the first and the last of them were issued.
        live: whether one has not ended.
    """

    version: str
    leases: int
    first_time: datetime | None
    last_time: datetime | None
    live: bool

    @property
    def reference(self) -> str:
        """`camera/fd@3`."""
        return people_form(self.version)


@dataclass(frozen=True, slots=True)
class Identity(Info):
    """Who this client is, and whether the service takes it.

    Attributes:
        spiffe_id: from the certificate; empty if it has not exactly one, or there is none.
        instance: SHA-256 of the TLS key's SPKI, 64 hexadecimal digits; without a certificate, what
            this process calls itself.
        not_before, not_after: the certificate's validity, or the token's; None: not known.
        issuer: the certificate's issuer (RFC 4514), or the token's.
        endpoint: of the service.
        ca_file: what the service's certificate is verified against.
        accepted: whether the service answered this identity.
        refusal: reason why not; empty if accepted.
        subject: of the token; empty with a certificate.
    """

    spiffe_id: str
    instance: str
    not_before: datetime | None
    not_after: datetime | None
    issuer: str
    endpoint: str
    ca_file: str
    accepted: bool
    refusal: str = ""
    subject: str = ""
