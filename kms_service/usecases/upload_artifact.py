"""Uploading the artifact of a PENDING version through the service, and going on after a break."""

from __future__ import annotations

from collections.abc import Iterator

from kms_service.domain.catalogue import Version
from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField
from kms_service.domain.identity import Caller
from kms_service.domain.names import VersionName
from kms_service.domain.ports import ArtifactStore, Liveness
from kms_service.usecases.authorisation import Gate, Permit

MAX_CHUNK_BYTES = 1 << 20


class UploadArtifact:
    def __init__(self, *, gate: Gate, store: ArtifactStore) -> None:
        self._gate = gate
        self._store = store

    def status(self, caller: Caller, name: VersionName) -> int:
        """How many bytes of the artifact are stored durably, from the beginning.

        Raises:
            ModelNotFoundOrDenied: missing, not permitted, or another publisher's version.
            VersionNotPending, VersionDestroyed.
            StorageUnavailable.
        """
        with self._gate.admit(
            caller, Action.CREATE_VERSION, name, event="GetWriteStatus"
        ) as permit:
            version = _own_pending(permit, caller)
            stored_bytes = self._store.stored_bytes(version.artifact_id) or 0
            permit.record(stored_bytes=stored_bytes)
            return stored_bytes

    def write(
        self,
        caller: Caller,
        name: VersionName,
        offset_bytes: int,
        chunks: Iterator[bytes],
        *,
        liveness: Liveness,
    ) -> int:
        """Append `chunks` (at most 1 MiB each) at `offset_bytes`; how many bytes from the
        beginning are stored durably then. What came before `chunks` raised is kept.

        Raises:
            as `status`.
            InvalidField: a chunk is longer than 1 MiB.
            UploadOffsetWrong: the stored upload ends elsewhere.
            ConcurrentUpdate: another call writes this artifact now.
            DeadlineExceeded.
        """
        with self._gate.admit(caller, Action.CREATE_VERSION, name, event="WriteArtifact") as permit:
            version = _own_pending(permit, caller)
            permit.note(artifact_id=version.artifact_id, offset_bytes=offset_bytes)
            with self._store.resume(version.artifact_id, offset_bytes) as upload:
                try:
                    for chunk in chunks:
                        if len(chunk) > MAX_CHUNK_BYTES:
                            raise InvalidField("data", f"must be at most {MAX_CHUNK_BYTES} bytes")
                        upload.append(chunk)
                        liveness.check()
                finally:
                    stored_bytes = upload.commit()
                    permit.note(stored_bytes=stored_bytes)
            permit.record()
            return stored_bytes


def _own_pending(permit: Permit, caller: Caller) -> Version:
    version = permit.require(permit.found.version)
    permit.require(version, mine=version.publisher == caller.principal.id)
    version.require_pending()
    return version
