"""Every error of the service. One root; families decide the status code, classes the reason.

`reason` is stable and public (google.rpc.ErrorInfo.reason). `message` is shown to callers, so it
never carries a secret, another tenant's name or an exception's text; causes are chained instead.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Root of all declared errors."""

    reason: ClassVar[str]
    default_message: ClassVar[str]

    def __init__(self, message: str | None = None, **metadata: str) -> None:
        self.message = message or self.default_message
        self.metadata = metadata
        super().__init__(self.message)


# --- families: each has one status code (kms_service/rpc/error_table.py) ----------------------


class InvalidArgument(ServiceError):
    """The request itself is wrong, whatever the state."""


class Unauthenticated(ServiceError):
    """No valid identity."""


class NotFound(ServiceError):
    """Missing or forbidden: told alike."""


class AlreadyExists(ServiceError):
    """The name is taken."""


class WrongState(ServiceError):
    """The resource's state does not allow it."""


class Conflict(ServiceError):
    """A compare-and-swap was lost; the caller may read again and retry."""


class Throttled(ServiceError):
    """Over a limit; retry later."""

    retry_after_s: float = 1.0


class Unavailable(ServiceError):
    """An outage, never an authorisation error; retry later."""

    retry_after_s: ClassVar[float] = 1.0


class Corrupt(ServiceError):
    """Stored data does not verify."""


class Cancelled(ServiceError):
    """The caller's deadline is over or the caller went away."""


# --- bad input ---------------------------------------------------------------------------------


class InvalidField(InvalidArgument):
    """A field of the request is invalid. Never echoes the value."""

    reason = "INVALID_FIELD"
    default_message = "a field is invalid"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class RecipientKeyInvalid(InvalidArgument):
    reason = "RECIPIENT_KEY_INVALID"
    default_message = "the client key is not a valid public key of its suite"


# --- identity ----------------------------------------------------------------------------------


class CredentialMissing(Unauthenticated):
    reason = "CREDENTIAL_MISSING"
    default_message = "no client certificate and no bearer token was presented"


class CredentialInvalid(Unauthenticated):
    reason = "CREDENTIAL_INVALID"
    default_message = "the client certificate may not be used here"


class CredentialExpired(Unauthenticated):
    reason = "CREDENTIAL_EXPIRED"
    default_message = "the client certificate has expired"


class SpiffeIdInvalid(Unauthenticated):
    reason = "SPIFFE_ID_INVALID"
    default_message = "the client certificate must carry exactly one valid SPIFFE ID as URI SAN"


class TrustDomainUnknown(Unauthenticated):
    reason = "TRUST_DOMAIN_UNKNOWN"
    default_message = "the client's trust domain is not served here"


class TlsVersionTooOld(Unauthenticated):
    reason = "TLS_VERSION_TOO_OLD"
    default_message = "TLS 1.3 is required"


class CredentialConflict(Unauthenticated):
    reason = "CREDENTIAL_CONFLICT"
    default_message = "the credentials that were presented contradict each other"


class TokenInvalid(Unauthenticated):
    reason = "TOKEN_INVALID"
    default_message = "the bearer token is not valid here and now"


# --- missing or forbidden ------------------------------------------------------------------------


class ModelNotFoundOrDenied(NotFound):
    """One message for all: missing project, model, version or alias, and every denial."""

    reason = "MODEL_NOT_FOUND_OR_DENIED"
    default_message = (
        "not found, or not yours to use; the security team can explain the decision id"
    )

    def __init__(self, decision_id: str) -> None:
        super().__init__(None, decision_id=decision_id)


class LeaseNotFoundOrDenied(NotFound):
    reason = "LEASE_NOT_FOUND_OR_DENIED"
    default_message = "no such lease, or not yours; the security team can explain the decision id"

    def __init__(self, decision_id: str) -> None:
        super().__init__(None, decision_id=decision_id)


class DecisionNotFoundOrDenied(NotFound):
    reason = "DECISION_NOT_FOUND_OR_DENIED"
    default_message = (
        "no such decision is recorded, or it is not yours to see; "
        "the security team can explain the decision id"
    )

    def __init__(self, decision_id: str) -> None:
        super().__init__(None, decision_id=decision_id)


# --- state (told only after a permit) ------------------------------------------------------------


class ResourceExists(AlreadyExists):
    reason = "ALREADY_EXISTS"
    default_message = "the name is taken"


class VersionNotFinalized(WrongState):
    reason = "VERSION_NOT_FINALIZED"
    default_message = "the version was never finalized: its push did not complete"


class VersionNotPending(WrongState):
    reason = "VERSION_NOT_PENDING"
    default_message = "the version is finalized already"


class VersionDisabled(WrongState):
    reason = "VERSION_DISABLED"
    default_message = "the version is disabled"


class VersionDestroyScheduled(WrongState):
    reason = "VERSION_DESTROY_SCHEDULED"
    default_message = "the version is scheduled for destruction"


class VersionDestroyed(WrongState):
    reason = "VERSION_DESTROYED"
    default_message = "the version is destroyed"


class VersionNotScheduled(WrongState):
    reason = "VERSION_NOT_SCHEDULED"
    default_message = "the version is not scheduled for destruction"


class SecondOfficerRequired(WrongState):
    reason = "SECOND_OFFICER_REQUIRED"
    default_message = "whoever scheduled the destruction cannot confirm it; another officer must"


class DestroyConfirmed(WrongState):
    reason = "DESTROY_CONFIRMED"
    default_message = "another officer has confirmed the destruction already"


class NoStableVersion(WrongState):
    reason = "ALIAS_NOT_SET"
    default_message = "the model has no such alias"


class LeaseExpired(WrongState):
    reason = "LEASE_EXPIRED"
    default_message = "the lease has expired"


class LeaseRevoked(WrongState):
    reason = "LEASE_REVOKED"
    default_message = "the lease was revoked"


class LeaseMaxTtl(WrongState):
    reason = "LEASE_MAX_TTL"
    default_message = "the lease has reached its absolute end; lease anew"


class LeaseLimit(WrongState):
    reason = "LEASE_LIMIT"
    default_message = "policy allows no further lease of this model while others of yours are live"


class LeaseUsedUp(WrongState):
    reason = "LEASE_USED_UP"
    default_message = "policy allows one lease of this version, and it was issued before"


class ProjectFrozen(WrongState):
    reason = "PROJECT_FROZEN"
    default_message = "the project is frozen: no data key of it is issued"


class MasterKeyMisconfigured(WrongState):
    reason = "MASTER_KEY_MISCONFIGURED"
    default_message = (
        "the project's master key is missing in Vault or not as required "
        "(aes256-gcm96, derived, not exportable)"
    )


class SigningKeyMisconfigured(WrongState):
    reason = "SIGNING_KEY_MISCONFIGURED"
    default_message = "the key that signs audit checkpoints is missing in Vault, or no Ed25519 key"


class AuditChainForked(WrongState):
    """Of the service's own timer; never crosses the wire."""

    reason = "AUDIT_CHAIN_FORKED"
    default_message = (
        "the audit chain stood further before: another process writes a chain of this name, "
        "or records were cut"
    )


class KeysUnderOldVersion(WrongState):
    reason = "KEYS_UNDER_OLD_VERSION"
    default_message = (
        "data keys are still wrapped under older versions of the master key; rewrap them first"
    )


class BackupsNeedOldVersion(WrongState):
    reason = "BACKUPS_NEED_OLD_VERSION"
    default_message = "registered backups need older versions of the master key"


class MasterKeyNotRetired(WrongState):
    reason = "MASTER_KEY_NOT_RETIRED"
    default_message = (
        "Vault still decrypts under versions that are to be trimmed; retire them first"
    )


class TrimNotRequested(WrongState):
    reason = "TRIM_NOT_REQUESTED"
    default_message = "nobody asked for this trim, or too long ago"


class WrappingVersionUnusable(WrongState):
    reason = "WRAPPING_VERSION_UNUSABLE"
    default_message = "Vault no longer decrypts under the master-key version that wraps this key"


class RewrapEnded(WrongState):
    reason = "REWRAP_ENDED"
    default_message = "the rewrap is done; start another one"


class UploadIncomplete(WrongState):
    reason = "UPLOAD_INCOMPLETE"
    default_message = "the stored artifact is shorter than its pin says; resume the upload"


class UploadOffsetWrong(WrongState):
    reason = "UPLOAD_OFFSET_WRONG"
    default_message = "the offset is not where the stored upload ends; ask GetWriteStatus"


# --- conflict -------------------------------------------------------------------------------------


class ConcurrentUpdate(Conflict):
    reason = "CONCURRENT_UPDATE"
    default_message = "another request changed the resource first"


class StateConflict(Conflict):
    reason = "STATE_CONFLICT"
    default_message = "the transaction lost against another; retry"


# --- limits ---------------------------------------------------------------------------------------


class Overloaded(Throttled):
    reason = "OVERLOADED"
    default_message = "the service is overloaded"


class QuotaExceeded(Throttled):
    reason = "QUOTA_EXCEEDED"
    default_message = "too many calls of this identity"

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class StreamLimit(Throttled):
    reason = "STREAM_LIMIT"
    default_message = "as many watches are open as there may be; ask CheckLeases meanwhile"
    retry_after_s = 30.0


class VaultThrottled(Throttled):
    reason = "VAULT_THROTTLED"
    default_message = "Vault limits our rate"


# --- outages --------------------------------------------------------------------------------------


class VaultUnavailable(Unavailable):
    reason = "VAULT_UNAVAILABLE"
    default_message = "Vault cannot be reached"


class VaultSealed(Unavailable):
    reason = "VAULT_SEALED"
    default_message = "Vault is sealed, in standby or not initialised"


class VaultAccessRefused(Unavailable):
    reason = "VAULT_ACCESS_REFUSED"
    default_message = "Vault refuses the service's own login or policy"


class VaultBadReply(Unavailable):
    reason = "VAULT_BAD_REPLY"
    default_message = "Vault's reply was not understood"


class StateUnavailable(Unavailable):
    reason = "STATE_UNAVAILABLE"
    default_message = "the database cannot be used right now"


class AuditUnavailable(Unavailable):
    reason = "AUDIT_UNAVAILABLE"
    default_message = "the audit log cannot be written, so no key is issued"


class StorageUnavailable(Unavailable):
    reason = "STORAGE_UNAVAILABLE"
    default_message = "the artifact store cannot be used right now"


class ServiceUnreachable(Unavailable):
    """Of `modelkms-server status`; never crosses the wire."""

    reason = "SERVICE_UNREACHABLE"
    default_message = "no service answers"


class ServiceStopping(Unavailable):
    reason = "SERVICE_STOPPING"
    default_message = "this process of the service is being stopped"


class PolicyUnavailable(Unavailable):
    reason = "POLICY_UNAVAILABLE"
    default_message = "no policy set is in force"


class IdentityProviderUnavailable(Unavailable):
    reason = "IDENTITY_PROVIDER_UNAVAILABLE"
    default_message = "the issuer of this token cannot be asked for its keys right now"
    retry_after_s = 2.0


# --- corruption -----------------------------------------------------------------------------------


class KeyRecordCorrupt(Corrupt):
    reason = "KEY_RECORD_CORRUPT"
    default_message = "the stored wrapped key does not belong to this version"


class StateCorrupt(Corrupt):
    reason = "STATE_CORRUPT"
    default_message = "the database is damaged"


class ArtifactMissing(Corrupt):
    reason = "ARTIFACT_MISSING"
    default_message = "the stored artifact of this version is gone"


class ArtifactCorrupt(Corrupt):
    reason = "ARTIFACT_CORRUPT"
    default_message = "the stored artifact is not a whole artifact"


class ArtifactMismatch(Corrupt):
    reason = "ARTIFACT_MISMATCH"
    default_message = "the stored artifact is not the one of this version and pin"


# --- ended calls ----------------------------------------------------------------------------------


class DeadlineExceeded(Cancelled):
    reason = "DEADLINE_EXCEEDED"
    default_message = "the call's deadline is over; nothing was issued"


# --- start-up -------------------------------------------------------------------------------------


class ConfigurationError(ServiceError):
    """The configuration cannot be served with. Start-up only; never crosses the wire."""

    reason = "CONFIGURATION_INVALID"
    default_message = "the configuration is invalid"
