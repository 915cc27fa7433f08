"""An artifact that lies somewhere as a file, looked into under a lease of its version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from modelkms.artifact.pin import pin_of
from modelkms.artifact.reader import ArtifactReader, Expected, read_header
from modelkms.artifact.sources import FileSource
from modelkms.errors import ArtifactMismatch, PathUnusable
from modelkms.leasing import lease_key
from modelkms.session import Session
from modelkms.types import PinInfo, Progress, ProgressCallback, VersionInfo


@contextmanager
def stored_artifact(session: Session, path: Path) -> Iterator[StoredArtifact]:
    """Lease the key of the version that the file's header names, and open the file with it.

    Raises:
        PathUnusable: it cannot be read.
        ArtifactCorrupt, ArtifactMismatch, ArchiveRejected: it is not what was published.
        and as `Client.open`.
    """
    with ExitStack() as stack:
        with _reading(path):
            file = stack.enter_context(path.open("rb", buffering=0))
            source = FileSource(file.fileno())
            name = read_header(source).version
        leased = lease_key(session, name, None)
        stack.callback(leased.data_key.wipe)
        version = leased.version
        assert version.pin is not None  # a key is leased only with one
        expected = Expected(version.name, version.uid, version.artifact_id, version.pin)
        with _reading(path):
            reader = stack.enter_context(ArtifactReader(source, leased.data_key.reveal(), expected))
        yield StoredArtifact(path, version, version.pin, reader, source)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PathUnusable(f"{path} cannot be read: {error.strerror or 'I/O error'}") from error


class StoredArtifact:
    """Readable as long as the block lasts that it came from.

    Attributes:
        version: whose artifact it is.
    """

    def __init__(
        self,
        path: Path,
        version: VersionInfo,
        pin: PinInfo,
        reader: ArtifactReader,
        source: FileSource,
    ) -> None:
        self.version = version
        self._path = path
        self._pin = pin
        self._reader = reader
        self._source = source

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in it."""
        return self._reader.sizes()

    def verify(self, progress: ProgressCallback | None = None) -> None:
        """Authenticate every segment, compare every local header and the digest of the pin.

        Raises:
            ArtifactCorrupt: the first segment that does not authenticate, in its metadata.
            ArchiveRejected: a member is not what the directory says.
            ArtifactMismatch: all of it authenticates, but it is not what was published.
            PathUnusable: it cannot be read.
        """

        def tell(done: int, total: int) -> None:
            if progress is not None:
                progress(Progress("verify", done, total))

        with _reading(self._path):
            self._reader.verify(tell)
            digest = pin_of(self._source).digest
        if digest != self._pin.digest:
            raise ArtifactMismatch(
                f"this is not what was published as {self.version.reference}: its digest is another"
            )
