"""Between wire and domain: what comes in is parsed and checked here; what goes out is built.

Free text is checked for what could deceive a reader of logs (F23, F24). Names and ids have
narrower grammars of their own (`domain.names`), as have labels (`domain.attributes`); pages are
checked where they are made.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from modelkms_api.v1 import key_transport_pb2, resources_pb2

from kms_service.domain.catalogue import (
    Alias,
    ArtifactPin,
    Model,
    Project,
    VersionState,
)
from kms_service.domain.destruction import Destruction
from kms_service.domain.errors import InvalidField, RecipientKeyInvalid
from kms_service.domain.leases import LeaseState
from kms_service.domain.names import LeaseName
from kms_service.domain.ports import ClientKey, EncryptedDataKey
from kms_service.usecases.answers import ArtifactLocation, LeaseView, MasterKeyView, VersionView

MAX_TEXT_BYTES = 2048
_MAX_REASON_BYTES = 1024
MAX_LEASE_NAMES = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KEPT_MESSAGES = 256
# --- in ------------------------------------------------------------------------------------------


def text(value: str, field: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Free text that is safe to show: no control or bidirectional characters, NFC.

    Raises:
        InvalidField: empty, too long, or with such characters.
    """
    if not value:
        raise InvalidField(field, "must not be empty")
    if len(value.encode()) > max_bytes:
        raise InvalidField(field, f"must be at most {max_bytes} bytes of UTF-8")
    for char in value:
        # Cc control, Cf format (bidi among them), Cs surrogate, Co private, Zl/Zp line separators
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            raise InvalidField(field, "must not hold control or formatting characters")
    if not unicodedata.is_normalized("NFC", value):
        raise InvalidField(field, "must be in Unicode normalization form C")
    return value


def reason(value: str) -> str:
    """Why somebody does it, in their words.

    Raises:
        InvalidField: as `text`.
    """
    return text(value, "reason", _MAX_REASON_BYTES)


def optional_text(value: str, field: str, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
    """As `text`; empty means not given."""
    return text(value, field, max_bytes) if value else None


def instance(value: str) -> str | None:
    """
    Raises:
        InvalidField: not 64 hexadecimal digits.
    """
    if not value:
        return None
    if re.fullmatch(r"[0-9a-f]{64}", value) is None:
        raise InvalidField("instance", "must be 64 lower-case hexadecimal digits")
    return value


def ttl(message: Duration, given: bool, field: str = "ttl") -> timedelta | None:
    """
    Raises:
        InvalidField: not over 0, or longer than a year.
    """
    if not given:
        return None
    milliseconds = message.seconds * 1000 + message.nanos // 1_000_000
    if not 0 < milliseconds <= 366 * 86_400_000:
        raise InvalidField(field, "must be over 0 and at most a year")
    return timedelta(milliseconds=milliseconds)


def time(message: Timestamp, given: bool, field: str) -> datetime | None:
    """
    Raises:
        InvalidField: not between the years 1 and 9999.
    """
    if not given:
        return None
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidField(field, "must be a time between the years 1 and 9999") from error


def lease_names(names: Sequence[str]) -> list[LeaseName]:
    """
    Raises:
        InvalidField: none, more than 1,000, or one that is no lease's name.
    """
    if not 1 <= len(names) <= MAX_LEASE_NAMES:
        raise InvalidField("leases", f"must be 1 to {MAX_LEASE_NAMES:,}")
    return [LeaseName.parse(name, "leases") for name in names]


def client_key(message: key_transport_pb2.ClientKey, given: bool) -> ClientKey:
    """Whether it is a key of its suite is for `KeyTransport.check`, which use cases ask.

    Raises:
        RecipientKeyInvalid: missing.
    """
    if not given:
        raise RecipientKeyInvalid
    return ClientKey(int(message.suite), message.public_key, message.request_nonce)


def pin(message: resources_pb2.ArtifactPin, given: bool) -> ArtifactPin:
    """Its lengths are checked by the use case.

    Raises:
        InvalidField: missing.
    """
    if not given:
        raise InvalidField("pin", "must be given")
    return ArtifactPin(message.length_bytes, message.floe_header_tag, message.digest)


# --- out -----------------------------------------------------------------------------------------

_VERSION_STATES = {
    VersionState.PENDING: resources_pb2.VERSION_STATE_PENDING,
    VersionState.ENABLED: resources_pb2.VERSION_STATE_ENABLED,
    VersionState.DISABLED: resources_pb2.VERSION_STATE_DISABLED,
    VersionState.DESTROY_SCHEDULED: resources_pb2.VERSION_STATE_DESTROY_SCHEDULED,
    VersionState.DESTROYED: resources_pb2.VERSION_STATE_DESTROYED,
}
_LEASE_STATES = {
    LeaseState.LIVE: resources_pb2.LEASE_STATE_LIVE,
    LeaseState.EXPIRED: resources_pb2.LEASE_STATE_EXPIRED,
    LeaseState.REVOKED: resources_pb2.LEASE_STATE_REVOKED,
}


def timestamp(time: datetime | None) -> Timestamp | None:
    """None stays None: an absent field."""
    if time is None:
        return None
    seconds, microseconds = divmod((time - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def duration(delta: timedelta | None) -> Duration | None:
    """Not of one below zero."""
    if delta is None:
        return None
    seconds, microseconds = divmod(delta // _MICROSECOND, 1_000_000)
    return Duration(seconds=seconds, nanos=microseconds * 1000)


def project_message(project: Project) -> resources_pb2.Project:
    return resources_pb2.Project(
        name=str(project.name),
        master_key=project.master_key,
        create_time=timestamp(project.create_time),
    )


def model_message(model: Model) -> resources_pb2.Model:
    return resources_pb2.Model(
        name=str(model.name), create_time=timestamp(model.create_time), labels=dict(model.labels)
    )


def pin_message(pin: ArtifactPin | None) -> resources_pb2.ArtifactPin | None:
    if pin is None:
        return None
    return resources_pb2.ArtifactPin(
        length_bytes=pin.length_bytes, floe_header_tag=pin.floe_header_tag, digest=pin.digest
    )


def version_message(view: VersionView) -> resources_pb2.Version:
    version = view.version
    return resources_pb2.Version(
        name=str(version.name),
        uid=version.uid,
        state=_VERSION_STATES[version.state],
        create_time=timestamp(version.create_time),
        finalize_time=timestamp(version.finalize_time),
        publisher=version.publisher,
        pin=pin_message(version.pin),
        aliases=view.aliases,
        artifact_id=version.artifact_id,
        destruction=_destruction_message(version.destruction),
    )


class VersionMessages:
    """Messages of versions that are told again and again, each made once while it stays true. Safe
    to use from many threads; what is got from here is copied, not changed."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[VersionView, resources_pb2.Version]] = {}

    def of(self, view: VersionView) -> resources_pb2.Version:
        uid = view.version.uid
        made = self._made.get(uid)
        if made is not None and made[0] == view:
            return made[1]
        message = version_message(view)
        if len(self._made) >= _KEPT_MESSAGES:
            self._made.clear()
        self._made[uid] = view, message
        return message


def _destruction_message(destruction: Destruction | None) -> resources_pb2.Destruction | None:
    if destruction is None:
        return None
    return resources_pb2.Destruction(
        due_time=timestamp(destruction.due.time),
        scheduled_by=destruction.scheduled_by,
        confirmed_by=destruction.confirmed_by,
        delete_artifact=destruction.delete_artifact,
        destroy_time=timestamp(destruction.destroy_time),
    )


def alias_message(alias: Alias) -> resources_pb2.Alias:
    return resources_pb2.Alias(
        name=str(alias.name),
        version=str(alias.version),
        update_time=timestamp(alias.update_time),
    )


def lease_message(view: LeaseView) -> resources_pb2.Lease:
    lease = view.lease
    return resources_pb2.Lease(
        name=str(lease.name),
        version=str(lease.version),
        principal=lease.principal,
        instance=lease.instance,
        issue_time=timestamp(lease.issue_time),
        expire_time=timestamp(lease.expire_time),
        absolute_end_time=timestamp(lease.absolute_end_time),
        renewals=lease.renewals,
        state=_LEASE_STATES[view.state],
        revoke_time=timestamp(lease.revoke_time),
    )


def location_message(location: ArtifactLocation) -> resources_pb2.ArtifactLocation:
    return resources_pb2.ArtifactLocation(
        url=location.url, url_expire_time=timestamp(location.url_expire_time)
    )


def master_key_message(view: MasterKeyView) -> resources_pb2.MasterKey:
    state = view.state
    return resources_pb2.MasterKey(
        name=f"{view.project}/masterKey",
        vault_key=state.name,
        latest_version=state.latest_version,
        min_decryption_version=state.min_decryption_version,
        latest_version_create_time=timestamp(state.latest_version_create_time),
        auto_rotate_period=duration(state.auto_rotate_period),
        keys_under_version=[
            resources_pb2.KeysUnderVersion(master_key_version=number, data_keys=count)
            for number, count in sorted(view.keys_under_version.items())
        ],
    )


def data_key_message(key: EncryptedDataKey) -> key_transport_pb2.EncryptedDataKey:
    session = key_transport_pb2.TransportSession(
        suite=key_transport_pb2.KeyTransportSuite.ValueType(key.suite),
        session_id=key.session_id,
        encrypted_secret=key.encrypted_secret,
    )
    return key_transport_pb2.EncryptedDataKey(
        session=session, nonce=key.nonce, ciphertext=key.ciphertext
    )
