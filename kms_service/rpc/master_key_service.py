"""MasterKeyService: what can be known of master keys, and rewrapping. Translates only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from modelkms_api.v1 import master_key_service_pb2 as pb
from modelkms_api.v1 import resources_pb2

from kms_service.domain.backups import Backup
from kms_service.domain.errors import InvalidField
from kms_service.domain.names import ProjectName, RewrapName
from kms_service.domain.rewrapping import RewrapState
from kms_service.domain.trims import Trim
from kms_service.rpc import conversion
from kms_service.rpc.pipeline import Call
from kms_service.usecases.backup_registry import BackupRegistry
from kms_service.usecases.get_master_key import GetMasterKey
from kms_service.usecases.rewrap_data_keys import RewrapDataKeys, RewrapView
from kms_service.usecases.trim_master_key import TrimMasterKey

_SUFFIX = "/masterKey"
_LATEST = "/rewraps/latest"
_WATCH_EVERY = timedelta(seconds=1)
_STATES = {
    RewrapState.RUNNING: pb.REWRAP_STATE_RUNNING,
    RewrapState.PAUSED: pb.REWRAP_STATE_PAUSED,
    RewrapState.DONE: pb.REWRAP_STATE_DONE,
}


class MasterKeyServicer:
    def __init__(
        self,
        *,
        get_master_key: GetMasterKey,
        rewrap: RewrapDataKeys,
        trim: TrimMasterKey,
        backups: BackupRegistry,
    ) -> None:
        self._trim = trim
        self._backups = backups
        self._get_master_key = get_master_key
        self._rewrap = rewrap

    def get_master_key(
        self, request: pb.GetMasterKeyRequest, call: Call
    ) -> resources_pb2.MasterKey:
        project = _project(request.name)
        return conversion.master_key_message(self._get_master_key(call.caller, project))

    def check_retirement(
        self, request: pb.CheckRetirementRequest, call: Call
    ) -> resources_pb2.MasterKey:
        project, oldest = _project(request.name), request.oldest_version
        return conversion.master_key_message(
            self._get_master_key.check_retirement(call.caller, project, oldest)
        )

    def rewrap_data_keys(self, request: pb.RewrapDataKeysRequest, call: Call) -> pb.RewrapOperation:
        parent = ProjectName.parse(request.parent, "parent")
        return _operation(self._rewrap.start(call.caller, parent, request.keys_per_second_limit))

    def get_rewrap(self, request: pb.GetRewrapRequest, call: Call) -> pb.RewrapOperation:
        if request.name.endswith(_LATEST):
            project = ProjectName.parse(request.name.removesuffix(_LATEST))
            return _operation(self._rewrap.latest(call.caller, project))
        return _operation(self._rewrap.get(call.caller, RewrapName.parse(request.name)))

    def watch_rewrap(
        self, request: pb.WatchRewrapRequest, call: Call
    ) -> Iterator[pb.RewrapOperation]:
        name = RewrapName.parse(request.name)
        for view in self._rewrap.watch(call.caller, name, _WATCH_EVERY, _Watching(call)):
            yield _operation(view)

    def pause_rewrap(self, request: pb.PauseRewrapRequest, call: Call) -> pb.RewrapOperation:
        return _operation(self._rewrap.pause(call.caller, RewrapName.parse(request.name)))

    def resume_rewrap(self, request: pb.ResumeRewrapRequest, call: Call) -> pb.RewrapOperation:
        return _operation(self._rewrap.resume(call.caller, RewrapName.parse(request.name)))

    def request_trim(self, request: pb.RequestTrimRequest, call: Call) -> pb.Trim:
        project, oldest = _project(request.name), request.oldest_version
        return _trim(self._trim.request(call.caller, project, oldest))

    def confirm_trim(self, request: pb.ConfirmTrimRequest, call: Call) -> pb.Trim:
        project, oldest = _project(request.name), request.oldest_version
        return _trim(self._trim.confirm(call.caller, project, oldest))

    def list_backups(self, request: pb.ListBackupsRequest, call: Call) -> pb.ListBackupsResponse:
        page = self._backups.list(call.caller, request.page_size, request.page_token)
        return pb.ListBackupsResponse(
            backups=map(_backup, page.items), next_page_token=page.next_page_token
        )

    def declare_backup_destroyed(
        self, request: pb.DeclareBackupDestroyedRequest, call: Call
    ) -> pb.Backup:
        reason = conversion.reason(request.reason)
        return _backup(self._backups.declare_destroyed(call.caller, request.name, reason))


@dataclass(frozen=True, slots=True)
class _Watching:
    """Implements `domain.ports.Liveness`."""

    call: Call

    def check(self) -> None:
        self.call.check_wanted_here()


def _project(name: str) -> ProjectName:
    if not name.endswith(_SUFFIX):
        raise InvalidField("name", "must be projects/{project}/masterKey")
    return ProjectName.parse(name.removesuffix(_SUFFIX))


def _trim(trim: Trim) -> pb.Trim:
    return pb.Trim(
        name=f"{trim.project}{_SUFFIX}",
        vault_key=trim.master_key,
        oldest_version=trim.oldest_version,
        requested_by=trim.requested_by,
        confirmed_by=trim.confirmed_by,
        create_time=conversion.timestamp(trim.create_time),
        expire_time=conversion.timestamp(trim.expire_time),
    )


def _backup(backup: Backup) -> pb.Backup:
    return pb.Backup(
        name=f"backups/{backup.id}",
        location=backup.location,
        create_time=conversion.timestamp(backup.create_time),
        complete=backup.oldest_versions is not None,
        oldest_versions=backup.oldest_versions,
        destroyed_by=backup.destroyed_by,
        destroy_reason=backup.destroy_reason,
        destroy_time=conversion.timestamp(backup.destroy_time),
    )


def _operation(view: RewrapView) -> pb.RewrapOperation:
    rewrap = view.rewrap
    return pb.RewrapOperation(
        name=str(rewrap.name),
        done=rewrap.done,
        state=_STATES[rewrap.state],
        vault_key=rewrap.master_key,
        target_version=rewrap.target_version,
        started_by=rewrap.started_by,
        keys_per_second_limit=rewrap.keys_per_second,
        total_keys=rewrap.total,
        rewrapped_keys=rewrap.rewrapped,
        failed_keys=rewrap.failed,
        left_keys=rewrap.left,
        keys_per_second=view.keys_per_second,
        remaining=conversion.duration(view.remaining),
        create_time=conversion.timestamp(rewrap.create_time),
        update_time=conversion.timestamp(rewrap.update_time),
        finish_time=conversion.timestamp(rewrap.finish_time),
        failures=[
            pb.RewrapFailure(version=str(failure.version), reason=failure.reason)
            for failure in view.failures
        ],
    )
