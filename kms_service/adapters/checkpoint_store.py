"""Where audit checkpoints are shipped: a folder or a bucket, each checkpoint written once.

That nobody else writes there twice is for the place to hold: retention or object lock on a bucket,
snapshots below a folder, on another machine. Here only our own overwriting is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from modelkms_api.object_store import BucketSettings, BucketSettingsError, connect
from obstore.exceptions import AlreadyExistsError, BaseError

from kms_service.domain.errors import ConfigurationError, StorageUnavailable

if TYPE_CHECKING:
    from modelkms_api.object_store import Bucket


_PROBE = "live-check"
"""Written once, by whoever tries the place first; no checkpoint, and never read."""
_PROBE_TEXT = b"check-config --live was here\n"
_SUFFIX = ".note"


class FolderCheckpointStore:
    """Implements `domain.ports.CheckpointPlace`.

    Raises:
        ConfigurationError: the folder can be neither found nor made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"audit.checkpoints.folder: cannot be used: {error.strerror}"
            ) from error

    def put(self, name: str, note: bytes) -> None:
        try:
            self._write_once(name, note)
        except OSError as error:
            raise StorageUnavailable from error

    def names(self, after: str, before: str) -> Sequence[str]:
        try:
            found = (path.name for path in self._folder.iterdir() if path.suffix == _SUFFIX)
            return sorted(name for name in found if after < name < before)
        except OSError as error:
            raise StorageUnavailable from error

    def get(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise StorageUnavailable from error

    def probe(self) -> None:
        try:
            self._write_once(_PROBE, _PROBE_TEXT)
        except FileExistsError:
            pass  # what was written by an earlier probe is not written again
        except OSError as error:
            raise StorageUnavailable from error

    def _write_once(self, name: str, data: bytes) -> None:
        # Under its own name from the first byte: mounts of buckets can neither link nor rename.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(self._folder / name, flags, 0o440), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class BucketCheckpointStore:
    """Implements `domain.ports.CheckpointPlace`. Nothing is sent before it is used.

    Raises:
        ConfigurationError: the settings cannot be used.
    """

    def __init__(self, settings: BucketSettings) -> None:
        try:
            self._bucket: Bucket = connect(settings)
        except BucketSettingsError as error:
            raise ConfigurationError(f"audit.checkpoints.{error}") from error

    def put(self, name: str, note: bytes) -> None:
        try:
            obstore.put(self._bucket, name, note, mode="create")
        except (BaseError, OSError) as error:
            raise StorageUnavailable from error

    def names(self, after: str, before: str) -> Sequence[str]:
        try:
            pages = obstore.list(self._bucket, offset=after)
            found = (entry["path"] for page in pages for entry in page)
            return sorted(name for name in found if name < before and name.endswith(_SUFFIX))
        except (BaseError, OSError) as error:
            raise StorageUnavailable from error

    def get(self, name: str) -> bytes:
        try:
            return bytes(obstore.get(self._bucket, name).bytes())
        except (BaseError, OSError) as error:
            raise StorageUnavailable from error

    def probe(self) -> None:
        if self._makes_probe() and self._makes_probe():
            raise ConfigurationError(
                "audit.checkpoints: the bucket replaces an object that was to be made only if "
                "there is none; choose one with conditional writes"
            )

    def _makes_probe(self) -> bool:
        """Whether there was none."""
        try:
            obstore.put(self._bucket, _PROBE, _PROBE_TEXT, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise StorageUnavailable from error
        return True
