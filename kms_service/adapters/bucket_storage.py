"""Artifacts in a bucket of S3, Google Cloud Storage or Azure, through obstore.

    PREFIX/objects/ab/ID        a published object, never changed by us
    PREFIX/uploads/ID/OFFSET    what the service was sent of an artifact, in parts of up to 8 MiB

An object store cannot append, so an unfinished upload is a row of parts, each durable by itself
and named by where it begins; publishing joins them. No replica of the service keeps anything of an
upload, so any of them can go on with it. Publishers with credentials of their own write the object
at once (modelkms_api.object_store).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import obstore
from modelkms_api.object_store import (
    OBJECTS,
    UPLOADS,
    BucketSettings,
    BucketSettingsError,
    connect,
    object_key,
)
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from kms_service.adapters.object_storage import checked_id, is_id
from kms_service.domain.errors import (
    ArtifactMissing,
    ConcurrentUpdate,
    ConfigurationError,
    StorageUnavailable,
    UploadOffsetWrong,
)

if TYPE_CHECKING:
    from modelkms_api.object_store import Bucket

PART_BYTES = 8 << 20
"""Held in memory for each running upload."""
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 3
_PAUSE_S = 0.2
_JOIN_CONCURRENCY = 3
_LINKS = 10_000
_LINK_REUSED_FOR = timedelta(hours=1)


class BucketArtifactStore:
    """Implements `domain.ports.ArtifactStore`. Nothing is sent before it is used.

    Args:
        settings: which bucket.
        signs_links: whether clients can reach the bucket, and so are given presigned links.
        part_bytes: for tests.

    Raises:
        ConfigurationError: the settings cannot be used.
    """

    def __init__(
        self, settings: BucketSettings, *, signs_links: bool = True, part_bytes: int = PART_BYTES
    ) -> None:
        try:
            self._bucket: Bucket = connect(settings)
        except BucketSettingsError as error:
            raise ConfigurationError(f"store.{error}") from error
        self._signs_links = signs_links
        self._part_bytes = part_bytes
        self._writing: set[str] = set()
        self._lock = threading.Lock()
        self._links: dict[str, tuple[str, float]] = {}

    def probe(self) -> None:
        """Returns if the bucket is there and lets itself be read.

        Raises:
            StorageUnavailable.
        """
        with _translated():
            next(iter(obstore.list(self._bucket, OBJECTS, chunk_size=1)), None)

    def stored_bytes(self, artifact_id: str) -> int | None:
        size = self._object_bytes(artifact_id)
        if size is not None:
            return size
        parts = self._parts(artifact_id)
        return sum(length for _, length in parts) if parts else None

    @contextmanager
    def resume(self, artifact_id: str, offset_bytes: int) -> Iterator[BucketArtifactWriter]:
        checked_id(artifact_id)
        with self._lock:
            if artifact_id in self._writing:
                raise ConcurrentUpdate("another upload of this version is running")
            self._writing.add(artifact_id)
        try:
            end = self.stored_bytes(artifact_id) or 0
            if end != offset_bytes:
                raise UploadOffsetWrong(f"the stored upload ends at byte {end}")
            yield BucketArtifactWriter(self._bucket, artifact_id, end, self._part_bytes)
        finally:
            with self._lock:
                self._writing.discard(artifact_id)

    def read(self, artifact_id: str, offset_bytes: int, length_bytes: int) -> Iterator[bytes]:
        """As the port says; errors come with the first chunk asked for. An object that is replaced
        meanwhile is not gone on with: StorageUnavailable."""
        end = offset_bytes + length_bytes
        size = self._object_bytes(artifact_id)
        if size is not None:
            yield from self._range(object_key(artifact_id), offset_bytes, min(end, size))
            return
        parts = self._parts(artifact_id)
        if not parts:
            raise ArtifactMissing
        for start, length in parts:
            first, last = max(offset_bytes, start), min(end, start + length)
            if first < last:
                yield from self._range(_part_key(artifact_id, start), first - start, last - start)

    def publish(self, artifact_id: str) -> None:
        """Join the parts of the upload, if there is no object yet. The put is atomic: nobody sees
        half of it, and one that was cut leaves nothing but what the bucket's lifecycle rule for
        incomplete multipart uploads removes."""
        if self._object_bytes(artifact_id) is None:
            parts = self._parts(artifact_id)
            if not parts:
                raise ArtifactMissing
            self._join(artifact_id, sum(length for _, length in parts))
        self._delete_parts(artifact_id)

    def _join(self, artifact_id: str, length_bytes: int) -> None:
        with _translated():
            writer = obstore.open_writer(
                self._bucket,
                object_key(artifact_id),
                buffer_size=PART_BYTES,
                max_concurrency=_JOIN_CONCURRENCY,
            )
        # No `with`: it would complete the object after an error too. One that is never closed is
        # never seen.
        for chunk in self.read(artifact_id, 0, length_bytes):
            with _translated():
                writer.write(chunk)
        with _translated():
            writer.close()

    def delete(self, artifact_id: str) -> None:
        key = object_key(checked_id(artifact_id))
        # S3 does not say that it was not there, others do.
        with _translated(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._bucket, key)
        self._delete_parts(artifact_id)

    def link(self, artifact_id: str, valid_for: timedelta) -> str | None:
        """A link is signed once an hour and given out meanwhile: it is good for an hour longer than
        `valid_for`, so whoever gets it last has it for long enough.

        Raises:
            StorageUnavailable: no credentials to sign with right now.
        """
        if not self._signs_links:
            return None
        now = time.monotonic()
        known = self._links.get(artifact_id)
        if known is not None and now < known[1]:
            return known[0]
        with _translated():
            url = obstore.sign(
                self._bucket,
                "GET",
                object_key(checked_id(artifact_id)),
                valid_for + _LINK_REUSED_FOR,
            )
        with self._lock:
            if len(self._links) >= _LINKS:
                self._links.clear()
            self._links[artifact_id] = url, now + _LINK_REUSED_FOR.total_seconds()
        return url

    def stored_before(self, time: datetime) -> Iterator[str]:
        for folder in (OBJECTS, UPLOADS):
            with _translated():
                pages = iter(obstore.list(self._bucket, folder, chunk_size=1000))
            newest: dict[str, datetime] = {}
            while True:
                with _translated():
                    page = next(pages, None)
                if page is None:
                    break
                for entry in page:
                    names = entry["path"].split("/")
                    artifact_id = names[-1] if folder == OBJECTS else names[-2]
                    if is_id(artifact_id):
                        written = entry["last_modified"]
                        newest[artifact_id] = max(written, newest.get(artifact_id, written))
            yield from (each for each, written in newest.items() if written < time)

    # --- objects and parts -----------------------------------------------------------------------

    def _object_bytes(self, artifact_id: str) -> int | None:
        key = object_key(checked_id(artifact_id))
        with _translated():
            try:
                return obstore.head(self._bucket, key)["size"]
            except FileNotFoundError:
                return None

    def _parts(self, artifact_id: str) -> list[tuple[int, int]]:
        """(offset, length) of the parts from the beginning, up to the first gap."""
        folder = f"{UPLOADS}/{checked_id(artifact_id)}"
        with _translated():
            found = obstore.list(self._bucket, folder, chunk_size=1000).collect()
        by_offset = {int(entry["path"].rsplit("/", 1)[-1], 16): entry["size"] for entry in found}
        parts, end = [], 0
        while (length := by_offset.get(end)) is not None and length > 0:
            parts.append((end, length))
            end += length
        return parts

    def _delete_parts(self, artifact_id: str) -> None:
        folder = f"{UPLOADS}/{checked_id(artifact_id)}"
        with _translated():
            keys = [entry["path"] for entry in obstore.list(self._bucket, folder).collect()]
            if keys:
                obstore.delete(self._bucket, keys)

    def _range(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes of one object, all of the same state of it; taken up again where a stream broke."""
        etag: str | None = None
        failures = 0
        while start < end:
            try:
                options: Any = {"range": (start, end)}
                if etag is not None:
                    options["if_match"] = etag
                answer = obstore.get(self._bucket, key, options=options)
                etag = answer.meta["e_tag"]
                for piece in answer.stream(min_chunk_size=_CHUNK_BYTES):
                    view = memoryview(piece)
                    for at in range(0, len(view), _CHUNK_BYTES):
                        chunk = bytes(view[at : at + _CHUNK_BYTES])
                        yield chunk
                        start += len(chunk)
                        failures = 0
                if start < end:
                    return  # shorter than it was: the caller counts
            except FileNotFoundError as error:
                raise ArtifactMissing from error
            except PreconditionError as error:
                raise StorageUnavailable("the object was replaced while it was read") from error
            except (BaseError, OSError) as error:
                failures += 1
                if failures >= _ATTEMPTS:
                    raise StorageUnavailable from error
                time.sleep(_PAUSE_S * failures)


class BucketArtifactWriter:
    """Implements `domain.ports.ArtifactWriter`: collects a part in memory, then stores it."""

    def __init__(self, bucket: Bucket, artifact_id: str, end: int, part_bytes: int) -> None:
        self._bucket = bucket
        self._artifact_id = artifact_id
        self._end = end
        self._part_bytes = part_bytes
        self._pending = bytearray()

    def append(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= self._part_bytes:
            self._store(bytes(self._pending[: self._part_bytes]))

    def commit(self) -> int:
        if self._pending:
            self._store(bytes(self._pending))
        return self._end

    def _store(self, part: bytes) -> None:
        """
        Raises:
            ConcurrentUpdate: another replica stored another part here: it writes too.
            StorageUnavailable: what came before stays.
        """
        key = _part_key(self._artifact_id, self._end)
        with _translated():
            try:
                obstore.put(self._bucket, key, part, mode="create", use_multipart=False)
            except AlreadyExistsError as error:
                # Ours, if the first answer was lost and the request sent again.
                if bytes(obstore.get(self._bucket, key).bytes()) != part:
                    raise ConcurrentUpdate("another upload of this version is running") from error
        del self._pending[: len(part)]
        self._end += len(part)


def _part_key(artifact_id: str, offset: int) -> str:
    return f"{UPLOADS}/{artifact_id}/{offset:016x}"


@contextmanager
def _translated() -> Iterator[None]:
    """
    Raises:
        StorageUnavailable: for any error of the store: refused, unreachable, overloaded. obstore
            has tried again by then; its text, which may hold a signed URL, goes nowhere.
    """
    try:
        yield
    except (BaseError, OSError) as error:
        raise StorageUnavailable from error
