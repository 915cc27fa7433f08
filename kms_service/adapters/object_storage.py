"""Artifacts in a local folder: ciphertext under random names.

    FOLDER/uploads/ID        an unfinished upload, appended to
    FOLDER/objects/ab/ID     a published object, never changed

A rename turns one into the other. Ids are checked, so no path can lead elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kms_service.domain.errors import (
    ArtifactMissing,
    ConcurrentUpdate,
    StorageUnavailable,
    UploadOffsetWrong,
)

_CHUNK_BYTES = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class LocalArtifactStore:
    """Implements `domain.ports.ArtifactStore`.

    Args:
        folder: made if missing, 0700.

    Raises:
        StorageUnavailable: the folder cannot be made or used.
    """

    def __init__(self, folder: Path) -> None:
        self._uploads = folder / "uploads"
        self._objects = folder / "objects"
        with _translated():
            for each in (folder, self._uploads, self._objects):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)

    def stored_bytes(self, artifact_id: str) -> int | None:
        with _translated():
            for path in (self._object(artifact_id), self._upload(artifact_id)):
                try:
                    return path.stat().st_size
                except FileNotFoundError:
                    continue
        return None

    @contextmanager
    def resume(self, artifact_id: str, offset_bytes: int) -> Iterator[LocalArtifactWriter]:
        with _translated():
            descriptor = os.open(self._upload(artifact_id), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with _translated():
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConcurrentUpdate("another upload of this version is running") from error
                end = os.lseek(descriptor, 0, os.SEEK_END)
            if end != offset_bytes:
                raise UploadOffsetWrong(f"the stored upload ends at byte {end}")
            yield LocalArtifactWriter(descriptor, end)
        finally:
            os.close(descriptor)

    def read(self, artifact_id: str, offset_bytes: int, length_bytes: int) -> Iterator[bytes]:
        """As the port says; errors come with the first chunk asked for."""
        descriptor = self._open(artifact_id)
        try:
            end = offset_bytes + length_bytes
            while offset_bytes < end:
                with _translated():
                    chunk = os.pread(
                        descriptor, min(_CHUNK_BYTES, end - offset_bytes), offset_bytes
                    )
                if not chunk:
                    return
                yield chunk
                offset_bytes += len(chunk)
        finally:
            os.close(descriptor)

    def publish(self, artifact_id: str) -> None:
        target = self._object(artifact_id)
        with _translated():
            target.parent.mkdir(exist_ok=True, mode=0o700)
            try:
                source = os.open(self._upload(artifact_id), os.O_RDONLY)
            except FileNotFoundError as error:
                if target.exists():
                    return  # published before
                raise ArtifactMissing from error
            try:
                os.fsync(source)
                os.fchmod(source, 0o400)
            finally:
                os.close(source)
            self._upload(artifact_id).rename(target)
            for folder in (target.parent, self._objects, self._uploads):
                _sync_folder(folder)

    def delete(self, artifact_id: str) -> None:
        with _translated():
            for path in (self._upload(artifact_id), self._object(artifact_id)):
                try:
                    path.unlink()
                except FileNotFoundError:
                    continue
                _sync_folder(path.parent)

    def link(self, artifact_id: str, valid_for: timedelta) -> str | None:  # noqa: ARG002
        """None: a local folder cannot sign."""
        return None

    def stored_before(self, time: datetime) -> Iterator[str]:
        for folder, pattern in ((self._objects, "*/*"), (self._uploads, "*")):
            with _translated():
                paths = list(folder.glob(pattern))
            for path in paths:
                with _translated():
                    try:
                        written = path.stat().st_mtime
                    except FileNotFoundError:
                        continue
                if is_id(path.name) and datetime.fromtimestamp(written, UTC) < time:
                    yield path.name

    def probe(self) -> None:
        with _translated():
            self._objects.stat()

    def _open(self, artifact_id: str) -> int:
        with _translated():
            for path in (self._object(artifact_id), self._upload(artifact_id)):
                try:
                    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue
        raise ArtifactMissing

    def _upload(self, artifact_id: str) -> Path:
        return self._uploads / checked_id(artifact_id)

    def _object(self, artifact_id: str) -> Path:
        return self._objects / checked_id(artifact_id)[:2] / artifact_id


class LocalArtifactWriter:
    """Implements `domain.ports.ArtifactWriter` on an open, locked upload."""

    def __init__(self, descriptor: int, end: int) -> None:
        self._descriptor = descriptor
        self._end = end

    def append(self, data: bytes) -> None:
        """What a failed append left behind the last durable byte is cut off again."""
        view = memoryview(data)
        end = self._end
        try:
            with _translated():
                while view:
                    written = os.pwrite(self._descriptor, view, end)
                    view, end = view[written:], end + written
        except StorageUnavailable:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end = end

    def commit(self) -> int:
        with _translated():
            os.fsync(self._descriptor)
        return self._end


@contextmanager
def _translated() -> Iterator[None]:
    """
    Raises:
        StorageUnavailable: for any error of the operating system.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StorageUnavailable("the artifact store is full" if full else None) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_id(name: str) -> bool:
    """Whether it is named as an artifact is."""
    return _ID.fullmatch(name) is not None


def checked_id(artifact_id: str) -> str:
    """
    Raises:
        ValueError: not an artifact id: a programming error, and never a path elsewhere.
    """
    if not is_id(artifact_id):
        raise ValueError("not an artifact id")
    return artifact_id
