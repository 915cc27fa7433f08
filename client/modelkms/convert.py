"""From the API's messages to the SDK's values. Distrusts what came: names must be of their kind."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from modelkms_api.v1 import access_service_pb2, master_key_service_pb2, resources_pb2

from modelkms.errors import AnswerInvalid, ModelKmsError
from modelkms.reference import Reference
from modelkms.types import (
    AliasInfo,
    BackupInfo,
    BlockInfo,
    DestructionInfo,
    FreezeInfo,
    LeaseInfo,
    MasterKeyInfo,
    ModelInfo,
    PinInfo,
    ProjectInfo,
    RewrapFailureInfo,
    RewrapInfo,
    TrimInfo,
    VersionInfo,
)

_UNKNOWN = "UNKNOWN"


def project(message: resources_pb2.Project) -> ProjectInfo:
    return ProjectInfo(message.name, message.master_key, optional_time(message, "create_time"))


def model(message: resources_pb2.Model) -> ModelInfo:
    return ModelInfo(message.name, optional_time(message, "create_time"), dict(message.labels))


def version(message: resources_pb2.Version) -> VersionInfo:
    """
    Raises:
        AnswerInvalid: name, uid, artifact id or pin are not of their form.
    """
    require_version_name(message.name)
    for value in (message.uid, message.artifact_id):
        if len(value) != 32 or not set(value) <= set("0123456789abcdef"):
            raise AnswerInvalid("the service sent a version whose ids are not of their form")
    return VersionInfo(
        name=message.name,
        uid=message.uid,
        state=_state(resources_pb2.VersionState, message.state, "VERSION_STATE_"),
        create_time=optional_time(message, "create_time"),
        finalize_time=optional_time(message, "finalize_time"),
        publisher=message.publisher,
        pin=_pin(message.pin) if message.HasField("pin") else None,
        aliases=tuple(message.aliases),
        artifact_id=message.artifact_id,
        destruction=_destruction(message.destruction) if message.HasField("destruction") else None,
    )


def _destruction(message: resources_pb2.Destruction) -> DestructionInfo:
    return DestructionInfo(
        due_time=optional_time(message, "due_time"),
        scheduled_by=message.scheduled_by,
        confirmed_by=message.confirmed_by,
        delete_artifact=message.delete_artifact,
        destroy_time=optional_time(message, "destroy_time"),
    )


def alias(message: resources_pb2.Alias) -> AliasInfo:
    require_version_name(message.version)
    return AliasInfo(message.name, message.version, optional_time(message, "update_time"))


def lease(message: resources_pb2.Lease) -> LeaseInfo:
    require_version_name(message.version)
    return LeaseInfo(
        name=message.name,
        version=message.version,
        principal=message.principal,
        instance=message.instance,
        issue_time=optional_time(message, "issue_time"),
        expire_time=optional_time(message, "expire_time"),
        absolute_end_time=optional_time(message, "absolute_end_time"),
        renewals=message.renewals,
        state=_state(resources_pb2.LeaseState, message.state, "LEASE_STATE_"),
        revoke_time=optional_time(message, "revoke_time"),
    )


def block(message: access_service_pb2.Block) -> BlockInfo:
    return BlockInfo(
        message.principal,
        message.reason,
        message.blocked_by,
        optional_time(message, "create_time"),
        optional_time(message, "until_time"),
    )


def freeze(message: access_service_pb2.Freeze) -> FreezeInfo:
    return FreezeInfo(
        message.project, message.reason, message.frozen_by, optional_time(message, "create_time")
    )


def trim(message: master_key_service_pb2.Trim) -> TrimInfo:
    return TrimInfo(
        name=message.name,
        vault_key=message.vault_key,
        oldest_version=message.oldest_version,
        requested_by=message.requested_by,
        confirmed_by=message.confirmed_by,
        create_time=optional_time(message, "create_time"),
        expire_time=optional_time(message, "expire_time"),
    )


def backup(message: master_key_service_pb2.Backup) -> BackupInfo:
    return BackupInfo(
        name=message.name,
        location=message.location,
        create_time=optional_time(message, "create_time"),
        complete=message.complete,
        oldest_versions=dict(message.oldest_versions),
        destroyed_by=message.destroyed_by,
        destroy_reason=message.destroy_reason,
        destroy_time=optional_time(message, "destroy_time"),
    )


def master_key(message: resources_pb2.MasterKey) -> MasterKeyInfo:
    period = message.auto_rotate_period
    return MasterKeyInfo(
        name=message.name,
        vault_key=message.vault_key,
        latest_version=message.latest_version,
        min_decryption_version=message.min_decryption_version,
        latest_version_create_time=optional_time(message, "latest_version_create_time"),
        auto_rotate_period=(
            period.ToTimedelta() if message.HasField("auto_rotate_period") else None
        ),
        keys_under_version={
            entry.master_key_version: entry.data_keys for entry in message.keys_under_version
        },
    )


def rewrap(message: master_key_service_pb2.RewrapOperation) -> RewrapInfo:
    remaining = message.remaining.ToTimedelta() if message.HasField("remaining") else None
    for failure in message.failures:
        require_version_name(failure.version)
    return RewrapInfo(
        name=message.name,
        done=message.done,
        state=_state(master_key_service_pb2.RewrapState, message.state, "REWRAP_STATE_"),
        vault_key=message.vault_key,
        target_version=message.target_version,
        started_by=message.started_by,
        keys_per_second_limit=message.keys_per_second_limit,
        total_keys=message.total_keys,
        rewrapped_keys=message.rewrapped_keys,
        failed_keys=message.failed_keys,
        left_keys=message.left_keys,
        keys_per_second=message.keys_per_second,
        remaining=remaining,
        create_time=optional_time(message, "create_time"),
        update_time=optional_time(message, "update_time"),
        finish_time=optional_time(message, "finish_time"),
        failures=tuple(
            RewrapFailureInfo(failure.version, failure.reason) for failure in message.failures
        ),
    )


def require_version_name(name: str) -> None:
    """
    Raises:
        AnswerInvalid: `name` is not `projects/…/models/…/versions/…`.
    """
    try:
        number = Reference.parse(name).number
    except ModelKmsError:
        number = None
    if number is None or not name.startswith("projects/"):
        raise AnswerInvalid("the service sent a version name that is none")


def _pin(message: resources_pb2.ArtifactPin) -> PinInfo:
    if len(message.floe_header_tag) != 32 or len(message.digest) != 32:
        raise AnswerInvalid("the service sent an artifact pin that is none")
    return PinInfo(message.length_bytes, message.floe_header_tag, message.digest)


def optional_time(message: object, field: str) -> datetime | None:
    """A timestamp field; None if it is not there."""
    value: Timestamp = getattr(message, field)
    present: bool = message.HasField(field)  # type: ignore[attr-defined]  # any message with it
    return value.ToDatetime(UTC) if present else None


def _state(enum: object, value: int, prefix: str) -> str:
    """Its name without prefix; a state this client does not know is UNKNOWN, so not openable."""
    try:
        name: str = enum.Name(value)  # type: ignore[attr-defined]  # EnumTypeWrapper: no public type
    except ValueError:
        return _UNKNOWN
    short = name.removeprefix(prefix)
    return _UNKNOWN if short == "UNSPECIFIED" else short
