"""Where audit checkpoints are shipped: a folder or a bucket, each checkpoint written once.

That nobody else writes there twice is for the place to hold: retention or object lock on a bucket,
snapshots below a folder, on another machine. Here only our own overwriting is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from modelkms_api.object_store import BucketSettings, BucketSettingsError, connect
from obstore.exceptions import BaseError

from kms_service.domain.errors import ConfigurationError, StorageUnavailable

if TYPE_CHECKING:
    from modelkms_api.object_store import Bucket


class FolderCheckpointStore:
    """Implements `domain.ports.CheckpointStore`.

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
        # Under its own name from the first byte: mounts of buckets can neither link nor rename.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            with os.fdopen(os.open(self._folder / name, flags, 0o440), "wb") as file:
                file.write(note)
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageUnavailable from error


class BucketCheckpointStore:
    """Implements `domain.ports.CheckpointStore`. Nothing is sent before it is used.

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
