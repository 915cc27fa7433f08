"""From the spool into the store: resumed where the store says, never guessed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import BinaryIO

import grpc
from modelkms_api.v1.artifact_service_pb2 import GetWriteStatusRequest, WriteArtifactRequest

from modelkms.errors import (
    AnswerInvalid,
    ArtifactMismatch,
    ConcurrentUpdate,
    ModelKmsError,
    UploadOffsetWrong,
)
from modelkms.session import ATTEMPTS, Session, may_retry
from modelkms.stall import StallGuard, guarded
from modelkms.types import Progress, ProgressCallback

_log = logging.getLogger("modelkms")

CHUNK_BYTES = 1 << 20
"""The API's limit of one message's data."""
PIECE_BYTES = 256 << 20
"""Of one WriteArtifact call, so that a deadline can bound each, and each makes bytes durable."""
_PIECE_DEADLINE_S = 1800.0


def upload(
    session: Session,
    version: str,
    file: BinaryIO,
    length_bytes: int,
    progress: ProgressCallback | None = None,
    *,
    piece_bytes: int = PIECE_BYTES,
) -> None:
    """Store `file` as the artifact of a PENDING version, going on where the store's copy ends.

    A broken stream is taken up again at what is durable; one that makes no progress is given up
    after a few attempts.

    Raises:
        ModelNotFoundOrDenied, VersionNotPending, StorageUnavailable, ServiceUnavailable, …
        ArtifactMismatch: more is stored than the artifact has.
    """
    failures = 0
    offset = _stored(session, version, length_bytes)
    while offset < length_bytes:
        _tell(progress, offset, length_bytes)
        end = min(offset + piece_bytes, length_bytes)
        try:
            stored = _piece(session, version, file, offset, end, length_bytes, progress)
        except grpc.RpcError as error:
            told = session.explain(error)
            if not _go_on(error, told):
                raise told from None
            before, offset = offset, _stored(session, version, length_bytes)
            failures = 1 if offset > before else failures + 1
            if failures >= ATTEMPTS:
                raise told from None
            _log.info("upload broke off, %d bytes are stored: %s", offset, told.reason)
            session.pause(session.pause_s(failures, told))
            continue
        if stored != end:
            raise AnswerInvalid("the service stored another number of bytes than it was sent")
        offset = stored
    _tell(progress, length_bytes, length_bytes)


def _stored(session: Session, version: str, length_bytes: int) -> int:
    request = GetWriteStatusRequest(version=version)
    stored = session.call(session.artifacts.GetWriteStatus, request).stored_bytes
    if stored > length_bytes:
        raise ArtifactMismatch(
            "the store holds more bytes for this version than its artifact has",
            hint="push again: it will be a new version",
        )
    return stored


def _piece(
    session: Session,
    version: str,
    file: BinaryIO,
    offset: int,
    end: int,
    length_bytes: int,
    progress: ProgressCallback | None,
) -> int:
    """One WriteArtifact call; how many bytes are durable after it."""
    guards: list[StallGuard] = []

    def chunks() -> Iterator[WriteArtifactRequest]:
        file.seek(offset)
        at = offset
        while at < end:
            data = file.read(min(CHUNK_BYTES, end - at))
            if not data:
                return  # cut short under our hands: the answer's length will tell
            first = at == offset
            yield WriteArtifactRequest(
                version=version if first else "", offset_bytes=at if first else 0, data=data
            )
            at += len(data)
            for guard in guards:
                guard.tick()
            _tell(progress, at, length_bytes)

    call = session.artifacts.WriteArtifact.future(chunks(), timeout=_PIECE_DEADLINE_S)
    with guarded(call.cancel) as guard:
        guards.append(guard)
        try:
            return call.result().stored_bytes
        except grpc.FutureCancelledError:
            # Our guard's doing. The same as a stream that the network broke off.
            raise _Stalled from None


class _Stalled(grpc.RpcError):
    """A stream that our own guard broke off."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.DEADLINE_EXCEEDED

    def details(self) -> str:
        return "the upload stood still"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def _go_on(error: grpc.RpcError, told: ModelKmsError) -> bool:
    # The writer that ConcurrentUpdate speaks of may be a broken stream of our own, or of a killed
    # push that we are the rerun of: the service lets go of it a moment after the connection.
    return (
        may_retry(error, told)
        or isinstance(told, UploadOffsetWrong | ConcurrentUpdate)
        or error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    )


def _tell(progress: ProgressCallback | None, done: int, total: int) -> None:
    if progress is not None:
        progress(Progress("upload", done, total))
