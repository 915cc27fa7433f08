"""Uploading into the object store directly, with this client's own credentials for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from modelkms_api.object_store import BucketSettings, BucketSettingsError, connect, object_key

from modelkms.errors import LibraryMissing, ModelKmsError, ProfileInvalid, StorageUnavailable
from modelkms.profile import StoreProfile
from modelkms.types import Progress, ProgressCallback

if TYPE_CHECKING:
    from modelkms_api.object_store import Bucket

_log = logging.getLogger("modelkms")

_PART_BYTES = 8 << 20
_MOST_PARTS = 9_000
"""S3 takes 10,000."""
_AT_ONCE = 4
_POLL_S = 0.2


class DirectStore:
    """The bucket that the service has too.

    Raises:
        ProfileInvalid: `[store]` cannot be used as it is.
        LibraryMissing: obstore is not installed.
    """

    def __init__(self, profile: StoreProfile) -> None:
        assert profile.bucket is not None  # who has none uploads through the service
        try:
            self._bucket: Bucket = connect(
                BucketSettings(
                    kind=profile.kind,
                    bucket=profile.bucket,
                    prefix=profile.prefix,
                    endpoint=profile.endpoint,
                    region=profile.region,
                    account=profile.account,
                    ca_file=profile.ca_file,
                    credentials_file=profile.credentials_file,
                )
            )
        except ImportError:
            raise LibraryMissing(
                "uploading into the store directly needs obstore",
                hint="pip install 'modelkms[store]', or leave bucket out of [store]",
            ) from None
        except BucketSettingsError as error:
            raise ProfileInvalid(f"store.{error}") from None

    def has(self, artifact_id: str, length_bytes: int) -> bool:
        """Whether an object of this length is there: an upload that was whole before its push
        broke off. What it holds is for the service to say.

        Raises:
            StorageUnavailable.
        """
        import obstore

        try:
            return obstore.head(self._bucket, object_key(artifact_id))["size"] == length_bytes
        except FileNotFoundError:
            return False
        except obstore.exceptions.BaseError as error:
            raise _unavailable(error) from None

    def put(
        self,
        artifact_id: str,
        file: BinaryIO,
        length_bytes: int,
        progress: ProgressCallback | None,
    ) -> None:
        """Store `file` as the object, in parts, several at once; all of it or nothing.

        A part that fails is sent again a few times. What comes of an upload that was broken off is
        for the bucket's lifecycle rule.

        Raises:
            StorageUnavailable: refused, or unreachable for too long.
        """
        upload = _Upload(self._bucket, object_key(artifact_id), file, length_bytes, progress)
        upload.run()


class _Upload:
    """Runs in a thread of its own: obstore waits without looking for Ctrl-C."""

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        file: BinaryIO,
        length_bytes: int,
        progress: ProgressCallback | None,
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._file = file
        self._length = length_bytes
        self._progress = progress
        self._read_bytes = 0
        self._stop = threading.Event()
        self._done = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        self._file.seek(0)
        thread = threading.Thread(target=self._put, name="modelkms-upload")
        thread.start()
        try:
            while not self._done.wait(_POLL_S):
                self._tell(min(self._read_bytes, self._length - 1))
        finally:
            self._stop.set()
            thread.join()
        if self._failure is not None:
            raise self._failure
        self._tell(self._length)

    def _put(self) -> None:
        import obstore

        part_bytes = max(_PART_BYTES, -(-self._length // _MOST_PARTS))
        try:
            obstore.put(
                self._bucket,
                self._key,
                self._parts(part_bytes),
                use_multipart=self._length > part_bytes,
                chunk_size=part_bytes,
                max_concurrency=_AT_ONCE,
            )
        except obstore.exceptions.BaseError as error:
            self._failure = _unavailable(error)
        except BaseException as error:
            self._failure = error
        finally:
            self._done.set()

    def _parts(self, part_bytes: int) -> Iterator[bytes]:
        while self._read_bytes < self._length:
            if self._stop.is_set():
                raise StorageUnavailable("the upload was stopped")
            data = self._file.read(min(part_bytes, self._length - self._read_bytes))
            if not data:
                raise StorageUnavailable("the spooled artifact became shorter")
            self._read_bytes += len(data)
            yield data

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(Progress("upload", done, self._length))


def _unavailable(error: Exception) -> ModelKmsError:
    """obstore's text may hold more than belongs into a message: its kind has to do."""
    kind = type(error).__name__
    refused = kind in ("PermissionDeniedError", "UnauthenticatedError")
    return StorageUnavailable(
        "the store refuses this client's credentials" if refused else f"the store failed ({kind})",
        hint="check [store] of the profile, and the credentials it names" if refused else None,
    )
