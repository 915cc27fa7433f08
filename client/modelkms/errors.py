"""Every error of the SDK. One root; families decide the exit code, classes the reason.

`reason` is stable and public: it is what the service sends as google.rpc.ErrorInfo.reason, or what
the SDK found itself. `str(error)` says what happened, `hint` what to do next. Nothing here ever
carries key bytes, plaintext or a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar


class ModelKmsError(Exception):
    """Root of all declared errors.

    Attributes:
        message: what happened, one sentence.
        reason: stable name of the cause, UPPER_SNAKE_CASE.
        hint: what to do next; None where there is nothing to say.
        metadata: facts that belong to it (`decision_id`, `incident_id`, sizes).
        exit_code: what the command line ends with.
        retry_after_s: when the service says that a retry may help, in seconds; else None.
    """

    exit_code: ClassVar[int] = 1
    default_reason: ClassVar[str] = "INTERNAL_ERROR"
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        hint: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.hint = hint or self.default_hint
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_s: float | None = None

    def as_dict(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "metadata": dict(self.metadata),
            "exit_code": self.exit_code,
        }


def all_errors(root: type[ModelKmsError] = ModelKmsError) -> Iterator[type[ModelKmsError]]:
    """Every declared error class below `root`, families included."""
    for child in root.__subclasses__():
        yield child
        yield from all_errors(child)


# --- families: each has one exit code (DESIGN §9) ---


class InternalError(ModelKmsError):
    """A bug, ours or the service's. The incident id in `metadata` finds it in the service's log."""

    default_hint = "report it to whoever runs the service, with the incident id if there is one"


class UsageError(ModelKmsError):
    """What was asked for is wrong, whatever the state."""

    exit_code = 2
    default_reason = "USAGE_INVALID"


class NotFoundError(ModelKmsError):
    """Missing or forbidden: told alike."""

    exit_code = 3
    default_reason = "NOT_FOUND"


class IdentityError(ModelKmsError):
    """This side's identity, or the service's, was not accepted."""

    exit_code = 4
    default_reason = "UNAUTHENTICATED"


class UnavailableError(ModelKmsError):
    """An outage or a limit; the same call may succeed later."""

    exit_code = 5
    default_reason = "UNAVAILABLE"
    default_hint = "try again later"


class CorruptError(ModelKmsError):
    """Something does not verify. Nothing of it was handed out."""

    exit_code = 6
    default_reason = "DATA_LOSS"


class LocalError(ModelKmsError):
    """This machine's disk, memory or paths."""

    exit_code = 7
    default_reason = "LOCAL_ERROR"


class WrongStateError(ModelKmsError):
    """The state of a resource does not allow it."""

    exit_code = 8
    default_reason = "FAILED_PRECONDITION"


class AnswerInvalid(InternalError):
    """The service's answer breaks the API's contract."""

    default_reason = "ANSWER_INVALID"
    default_hint = "client and service do not fit together; upgrade the older one"


# --- usage ---


class InvalidField(UsageError):
    default_reason = "INVALID_FIELD"


class RecipientKeyInvalid(UsageError):
    default_reason = "RECIPIENT_KEY_INVALID"
    default_hint = "upgrade modelkms: the service does not take its key-transport suite"


class ReferenceInvalid(UsageError):
    """A reference is not `[project/]model[@version|@alias]`, or not of the kind that is needed."""

    default_reason = "REFERENCE_INVALID"


class ProfileInvalid(UsageError):
    """The profile is missing, unreadable or wrong."""

    default_reason = "PROFILE_INVALID"


class OperationUnsupported(UsageError):
    """The service does not know the call."""

    default_reason = "UNIMPLEMENTED"
    default_hint = "the service is older than this client; upgrade it"


class RequestTooLarge(UsageError):
    """The request is larger than the service takes; not retried."""

    default_reason = "REQUEST_TOO_LARGE"


# --- missing or forbidden ---


class ModelNotFoundOrDenied(NotFoundError):
    default_reason = "MODEL_NOT_FOUND_OR_DENIED"
    default_hint = (
        "check the name; if it is right, give the decision id to the security team: "
        "they can see why"
    )


class LeaseNotFoundOrDenied(NotFoundError):
    default_reason = "LEASE_NOT_FOUND_OR_DENIED"
    default_hint = "`modelkms lease list` shows the leases you may see"


class DecisionNotFoundOrDenied(NotFoundError):
    default_reason = "DECISION_NOT_FOUND_OR_DENIED"
    default_hint = (
        "decisions are kept for a while only: ask with principal, action and model instead"
    )


class MemberNotFound(NotFoundError):
    """The opened model has no file of this name."""

    default_reason = "MEMBER_NOT_FOUND"


# --- identity ---


class CredentialMissing(IdentityError):
    """No client certificate, where TLS or the service demands one."""

    default_reason = "CREDENTIAL_MISSING"
    default_hint = "set certificate_file and key_file in the profile"


class CredentialInvalid(IdentityError):
    """The client certificate or key cannot be used, or TLS refused it."""

    default_reason = "CREDENTIAL_INVALID"
    default_hint = (
        "check certificate_file and key_file of the profile; `modelkms doctor` tells more"
    )


class CredentialExpired(IdentityError):
    default_reason = "CREDENTIAL_EXPIRED"
    default_hint = "renew the client certificate and check this machine's clock"


class SpiffeIdInvalid(IdentityError):
    default_reason = "SPIFFE_ID_INVALID"
    default_hint = "the certificate needs exactly one spiffe:// URI as subject alternative name"


class TrustDomainUnknown(IdentityError):
    default_reason = "TRUST_DOMAIN_UNKNOWN"
    default_hint = "this identity belongs to another trust domain than the service serves"


class TlsVersionTooOld(IdentityError):
    default_reason = "TLS_VERSION_TOO_OLD"


class CredentialConflict(IdentityError):
    default_reason = "CREDENTIAL_CONFLICT"


class TokenInvalid(IdentityError):
    default_reason = "TOKEN_INVALID"
    default_hint = "the token has expired, or is not of an issuer or for an audience of the service"


class ServerNotTrusted(IdentityError):
    """The service's certificate does not verify against `ca_file`, or has another name."""

    default_reason = "SERVER_NOT_TRUSTED"
    default_hint = "check ca_file and endpoint of the profile: never go on without verification"


# --- outages and limits ---


class ServiceUnavailable(UnavailableError):
    """The service cannot be reached."""

    default_reason = "SERVICE_UNAVAILABLE"


class DeadlineExceeded(UnavailableError):
    default_reason = "DEADLINE_EXCEEDED"


class CallCancelled(UnavailableError):
    default_reason = "CANCELLED"


class Overloaded(UnavailableError):
    default_reason = "OVERLOADED"


class StreamLimit(UnavailableError):
    default_reason = "STREAM_LIMIT"
    default_hint = "leases are checked now and then instead; ends of leases are heard of later"


class QuotaExceeded(UnavailableError):
    default_reason = "QUOTA_EXCEEDED"


class VaultThrottled(UnavailableError):
    default_reason = "VAULT_THROTTLED"


class VaultUnavailable(UnavailableError):
    default_reason = "VAULT_UNAVAILABLE"


class VaultSealed(UnavailableError):
    default_reason = "VAULT_SEALED"
    default_hint = "no key is issued until Vault is unsealed; ask the security team"


class VaultAccessRefused(UnavailableError):
    default_reason = "VAULT_ACCESS_REFUSED"
    default_hint = "the service's own Vault login or policy fails; tell whoever runs the service"


class VaultBadReply(UnavailableError):
    default_reason = "VAULT_BAD_REPLY"


class StateUnavailable(UnavailableError):
    default_reason = "STATE_UNAVAILABLE"


class AuditUnavailable(UnavailableError):
    default_reason = "AUDIT_UNAVAILABLE"


class StorageUnavailable(UnavailableError):
    default_reason = "STORAGE_UNAVAILABLE"


class ServiceStopping(UnavailableError):
    default_reason = "SERVICE_STOPPING"
    default_hint = "try again: another replica answers, or this one once it is back"


class PolicyUnavailable(UnavailableError):
    default_reason = "POLICY_UNAVAILABLE"


class IdentityProviderUnavailable(UnavailableError):
    default_reason = "IDENTITY_PROVIDER_UNAVAILABLE"
    default_hint = "the service cannot fetch the keys of the token's issuer: tell operations"


# --- corruption ---


class KeyRecordCorrupt(CorruptError):
    default_reason = "KEY_RECORD_CORRUPT"
    default_hint = "the service's records were changed from outside; tell the security team"


class StateCorrupt(CorruptError):
    default_reason = "STATE_CORRUPT"
    default_hint = "the service's database is damaged; tell whoever runs it"


class ArtifactMissing(CorruptError):
    default_reason = "ARTIFACT_MISSING"
    default_hint = "the stored object is gone: restore it from a backup or push a new version"


class ArtifactCorrupt(CorruptError):
    """The artifact is damaged: truncated, extended, or a segment does not authenticate."""

    default_reason = "ARTIFACT_CORRUPT"
    default_hint = "the stored object is damaged: restore it from a backup or push a new version"


class ArtifactMismatch(CorruptError):
    """A whole artifact, but not the one of this version and pin."""

    default_reason = "ARTIFACT_MISMATCH"
    default_hint = "the store served another object than was published; tell the security team"


class ArtifactChanged(CorruptError):
    """The stored object was replaced while it was read, again and again."""

    default_reason = "ARTIFACT_CHANGED"
    default_hint = "the store's object changes while it is read; tell the security team"


class ArchiveRejected(CorruptError):
    """The archive inside an artifact has members that are refused."""

    default_reason = "ARCHIVE_REJECTED"


class KeyAnswerInvalid(CorruptError):
    """A key answer does not verify: changed, replayed, or made for another request."""

    default_reason = "KEY_ANSWER_INVALID"
    default_hint = "something between here and the service changes answers; tell the security team"


# --- this machine ---


class SourceRejected(LocalError):
    """The file or folder to publish cannot be published as it is. Nothing was created."""

    default_reason = "SOURCE_REJECTED"


class SourceChanged(LocalError):
    """The file or folder changed while it was read. Nothing was published."""

    default_reason = "SOURCE_CHANGED"
    default_hint = "push again when nothing writes to it"


class PathUnusable(LocalError):
    """A path on this machine is missing, exists already, or is not of the needed kind."""

    default_reason = "PATH_UNUSABLE"


class CacheUnsafe(LocalError):
    """A folder that others could write to, or that is not ours, would have to be trusted."""

    default_reason = "CACHE_UNSAFE"
    default_hint = "set cache_dir or state_dir in the profile to a folder of your own"


class LocalDiskFull(LocalError):
    default_reason = "LOCAL_DISK_FULL"


class LocalDiskError(LocalError):
    default_reason = "LOCAL_DISK_ERROR"


class MemoryStorageMissing(LocalError):
    """There is no memory-backed folder to materialize into."""

    default_reason = "MEMORY_STORAGE_MISSING"
    default_hint = (
        "mount a tmpfs at /dev/shm, or read the model with .read() and .open(); where there is no "
        "tmpfs, insecure_plaintext_dir in the profile allows a folder on disk"
    )


class ModelNotLoadable(LocalError):
    """No loader takes this model, or its files are not what they seem to be."""

    default_reason = "MODEL_NOT_LOADABLE"


class LibraryMissing(LocalError):
    """A library that is needed for this is not installed: it belongs to an extra."""

    default_reason = "LIBRARY_MISSING"


class PushInProgress(LocalError):
    """Another process on this machine pushes the same path to the same reference."""

    default_reason = "PUSH_IN_PROGRESS"
    default_hint = "wait for the other push to end"


# --- state ---


class AlreadyExists(WrongStateError):
    default_reason = "ALREADY_EXISTS"


class VersionNotFinalized(WrongStateError):
    default_reason = "VERSION_NOT_FINALIZED"
    default_hint = "push again: an unfinished push goes on where it stopped"


class VersionNotPending(WrongStateError):
    default_reason = "VERSION_NOT_PENDING"


class VersionDisabled(WrongStateError):
    default_reason = "VERSION_DISABLED"
    default_hint = "`modelkms enable` it, if you may, or open another version"


class VersionDestroyScheduled(WrongStateError):
    default_reason = "VERSION_DESTROY_SCHEDULED"
    default_hint = "until it is due, an officer can undo it: `modelkms restore`"


class VersionNotScheduled(WrongStateError):
    default_reason = "VERSION_NOT_SCHEDULED"
    default_hint = "there is nothing to confirm or to undo; `modelkms destroy` schedules"


class SecondOfficerRequired(WrongStateError):
    default_reason = "SECOND_OFFICER_REQUIRED"
    default_hint = "ask another officer to run it"


class DestroyConfirmed(WrongStateError):
    default_reason = "DESTROY_CONFIRMED"
    default_hint = "nothing is left to do: it is destroyed when it is due"


class VersionDestroyed(WrongStateError):
    default_reason = "VERSION_DESTROYED"


class AliasNotSet(WrongStateError):
    default_reason = "ALIAS_NOT_SET"
    default_hint = "`modelkms alias list` shows the aliases; `modelkms promote` sets @stable"


class LeaseExpired(WrongStateError):
    default_reason = "LEASE_EXPIRED"
    default_hint = "open the model again"


class LeaseRevoked(WrongStateError):
    default_reason = "LEASE_REVOKED"
    default_hint = "the lease was ended by the security team or by disabling the version"


class LeaseLimit(WrongStateError):
    default_reason = "LEASE_LIMIT"
    default_hint = "close what you do not need: policy bounds how many leases are live at once"


class LeaseUsedUp(WrongStateError):
    default_reason = "LEASE_USED_UP"
    default_hint = "policy allows this version to be opened once"


class ProjectFrozen(WrongStateError):
    default_reason = "PROJECT_FROZEN"
    default_hint = "the security team froze the project: no data key of it is issued"


class LeaseMaxTtl(WrongStateError):
    default_reason = "LEASE_MAX_TTL"
    default_hint = "open the model again for a new lease"


class MasterKeyMisconfigured(WrongStateError):
    default_reason = "MASTER_KEY_MISCONFIGURED"
    default_hint = "an officer makes it: `modelkms admin master-key create PROJECT`"


class KeysUnderOldVersion(WrongStateError):
    default_reason = "KEYS_UNDER_OLD_VERSION"
    default_hint = "modelkms admin master-key rewrap PROJECT"


class BackupsNeedOldVersion(WrongStateError):
    default_reason = "BACKUPS_NEED_OLD_VERSION"
    default_hint = (
        "let them run out: `modelkms admin backup list`, `modelkms admin backup destroyed`"
    )


class MasterKeyNotRetired(WrongStateError):
    default_reason = "MASTER_KEY_NOT_RETIRED"
    default_hint = "modelkms admin master-key retire PROJECT"


class TrimNotRequested(WrongStateError):
    default_reason = "TRIM_NOT_REQUESTED"
    default_hint = "another officer asks for it first: `modelkms admin master-key trim PROJECT`"


class WrappingVersionUnusable(WrongStateError):
    default_reason = "WRAPPING_VERSION_UNUSABLE"
    default_hint = "Vault's min_decryption_version was raised too far; tell the security team"


class UploadIncomplete(WrongStateError):
    default_reason = "UPLOAD_INCOMPLETE"
    default_hint = "push again: an unfinished push goes on where it stopped"


class RewrapEnded(WrongStateError):
    default_reason = "REWRAP_ENDED"
    default_hint = "`modelkms admin master-key rewrap PROJECT` starts another one"


class RewrapIncomplete(WrongStateError):
    """A rewrap ended, and some data keys are still under an old master-key version."""

    default_reason = "REWRAP_INCOMPLETE"
    default_hint = "mend what the reasons say, then rewrap again: what failed is tried again"


class UploadOffsetWrong(WrongStateError):
    default_reason = "UPLOAD_OFFSET_WRONG"
    default_hint = "push again: an unfinished push goes on where it stopped"


class ConcurrentUpdate(WrongStateError):
    default_reason = "CONCURRENT_UPDATE"
    default_hint = "somebody changed it at the same time; look at it again and retry"


class StateConflict(WrongStateError):
    default_reason = "STATE_CONFLICT"
    default_hint = "retry"


class ModelClosed(WrongStateError):
    """The opened model was closed."""

    default_reason = "MODEL_CLOSED"
    default_hint = "open the model again"
