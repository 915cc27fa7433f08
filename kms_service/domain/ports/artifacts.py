"""Where artifacts are stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Protocol


class ArtifactWriter(Protocol):
    """One resumable upload, open for appending."""

    def append(self, data: bytes) -> None:
        """
        Raises:
            StorageUnavailable: could not be stored.
        """

    def commit(self) -> int:
        """Make what was appended durable; bytes stored from the beginning."""


class ArtifactStore(Protocol):
    """Objects by artifact id. Holds ciphertext only."""

    def stored_bytes(self, artifact_id: str) -> int | None:
        """Durable bytes of a published object or unfinished upload; None: neither is there.

        Raises:
            StorageUnavailable.
        """

    def resume(self, artifact_id: str, offset_bytes: int) -> AbstractContextManager[ArtifactWriter]:
        """Go on with an upload at `offset_bytes`; one writer at a time.

        Raises:
            UploadOffsetWrong: the stored upload ends elsewhere.
            ConcurrentUpdate: another writer has it open.
        """

    def read(self, artifact_id: str, offset_bytes: int, length_bytes: int) -> Iterator[bytes]:
        """The range, in chunks of at most 1 MiB; fewer bytes at the end of the object. Reads
        unfinished uploads too: the caller decides who may see them.

        Raises:
            ArtifactMissing: no such object.
            StorageUnavailable.
        """

    def publish(self, artifact_id: str) -> None:
        """Turn the upload into the object, durably and atomically. Idempotent."""

    def delete(self, artifact_id: str) -> None:
        """Remove object and upload, if there. Idempotent."""

    def link(self, artifact_id: str, valid_for: timedelta) -> str | None:
        """A presigned GET link, good for at least so long; None where the store cannot sign.

        Raises:
            StorageUnavailable: it can, but not now.
        """

    def stored_before(self, time: datetime) -> Iterator[str]:
        """Ids of the objects and uploads that were last written before then; in no order, an id
        twice if it has both. What is not named by an artifact id is not ours and left out.

        Raises:
            StorageUnavailable.
        """

    def probe(self) -> None:
        """Returns if the store is there and can be read; cheap.

        Raises:
            StorageUnavailable.
        """
