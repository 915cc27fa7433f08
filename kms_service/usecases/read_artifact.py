"""Reading a range of a version's ciphertext through the service."""

from __future__ import annotations

from collections.abc import Iterator

from kms_service.domain.decisions import Action
from kms_service.domain.errors import ArtifactCorrupt, ArtifactMissing, InvalidField
from kms_service.domain.identity import Caller
from kms_service.domain.names import VersionName
from kms_service.domain.ports import ArtifactStore, Liveness
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.resolution import resolve_openable


class ReadArtifact:
    def __init__(self, *, gate: Gate, store: ArtifactStore) -> None:
        self._gate = gate
        self._store = store

    def __call__(
        self,
        caller: Caller,
        name: VersionName,
        offset_bytes: int,
        length_bytes: int,
        *,
        liveness: Liveness,
    ) -> Iterator[bytes]:
        """The range, in order, in chunks of at most 1 MiB; `length_bytes` 0 means to the end.

        Raises at once:
            ModelNotFoundOrDenied: missing, or not permitted.
            VersionNotFinalized, VersionDisabled, VersionDestroyScheduled, VersionDestroyed.
            InvalidField: the range begins beyond the end.
            ArtifactMissing: the object is gone.
            ArtifactCorrupt: the object is longer or shorter than its pin.
            StorageUnavailable.
        Raises while iterated:
            ArtifactMissing: the object went away, or was cut, meanwhile.
            StorageUnavailable, DeadlineExceeded.
        """
        if offset_bytes < 0 or length_bytes < 0:
            raise InvalidField("offset_bytes", "must not be negative")
        with self._gate.admit(caller, Action.RESOLVE_MODEL, name, event="ReadArtifact") as permit:
            _, version, pin = resolve_openable(permit, name)
            if offset_bytes > pin.length_bytes:
                raise InvalidField("offset_bytes", "is beyond the end of the artifact")
            rest = pin.length_bytes - offset_bytes
            wanted = min(length_bytes or rest, rest)
            self._require_whole(version.artifact_id, pin.length_bytes)
            permit.record(offset_bytes=offset_bytes, length_bytes=wanted)
        return self._chunks(version.artifact_id, offset_bytes, wanted, liveness)

    def _require_whole(self, artifact_id: str, length_bytes: int) -> None:
        stored = self._store.stored_bytes(artifact_id)
        if stored is None:
            raise ArtifactMissing
        if stored != length_bytes:
            raise ArtifactCorrupt

    def _chunks(
        self, artifact_id: str, offset_bytes: int, wanted: int, liveness: Liveness
    ) -> Iterator[bytes]:
        sent = 0
        if wanted:
            for chunk in self._store.read(artifact_id, offset_bytes, wanted):
                liveness.check()
                sent += len(chunk)
                yield chunk
        if sent != wanted:
            raise ArtifactMissing
