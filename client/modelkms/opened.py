"""An opened model: its files, decrypted as they are read."""

from __future__ import annotations

import io
import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, TypeVar

from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE

from modelkms import catalogue
from modelkms.artifact.reader import ArtifactReader, Expected, MemberFile
from modelkms.download import Downloader
from modelkms.errors import (
    ArchiveRejected,
    ArtifactCorrupt,
    LeaseExpired,
    LeaseMaxTtl,
    LocalDiskFull,
    ModelClosed,
    PathUnusable,
    UnavailableError,
)
from modelkms.folders import free_bytes, local_error
from modelkms.key_transport import boottime_s
from modelkms.leasing import LeasedKey, lease_key
from modelkms.materialize import materialized
from modelkms.secret import SecretBytes
from modelkms.session import Session
from modelkms.types import LeaseInfo, ProgressCallback, VersionInfo

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_log = logging.getLogger("modelkms")

T = TypeVar("T")

_BUFFER_BYTES = 64 << 10


def open_model(
    session: Session,
    downloader: Downloader,
    name: str,
    attributes: Mapping[str, str] | None,
    progress: ProgressCallback | None,
) -> OpenedModel:
    """Lease the data key, get the artifact, open it. `name` is a resource name."""
    leased = lease_key(session, name, attributes)
    source = _Source(downloader, leased.version, leased.data_key, progress, leased.link)
    copy: _Copy | None = None
    try:
        copy = source.open()
        if boottime_s() >= leased.renew_at_s:
            # The download took most of the lease, or all of it; one that has ended cannot be
            # renewed. The same version anew, whatever the reference means by now.
            leased = leased.replaced_by(lease_key(session, leased.version.name, attributes))
    except BaseException:
        if copy is not None:
            copy.close()
        leased.data_key.wipe()
        raise
    return OpenedModel(session, source, copy, leased)


class OpenedModel:
    """A version of a model, readable until it is closed. Safe to use from several threads.

    The lease bounds what is *begun*: it is renewed when something is begun in its last third, and
    once it has ended, files that are open stay readable and nothing new can be opened. Closing
    wipes this copy of the data key; files that were opened from it can then no longer be read.
    """

    def __init__(self, session: Session, source: _Source, copy: _Copy, leased: LeasedKey) -> None:
        self._session = session
        self._source = source
        self._copy = copy
        self._retired: list[_Copy] = []
        self._leased = leased
        self._lock = threading.RLock()
        self._closed = False

    @property
    def version(self) -> VersionInfo:
        """What the reference meant."""
        return self._leased.version

    @property
    def lease(self) -> LeaseInfo:
        """As it was issued, or last renewed."""
        return self._leased.lease

    @property
    def single_file(self) -> bool:
        """Whether the model was pushed as one file, not as a folder."""
        return self._copy.reader.header.payload_kind == PAYLOAD_KIND_FILE

    def files(self) -> list[str]:
        """Names of the files, sorted; `/` between folders. One name for a single-file model."""
        self._require_open()
        return self._copy.reader.files()

    def read(self, name: str | None = None) -> bytes:
        """The whole content of a file; of the only one if `name` is None.

        Raises:
            MemberNotFound: no such file, or no name is given and there are several.
            ArtifactCorrupt: it does not authenticate; no byte of it is handed out.
            LeaseExpired: the lease has ended and could not be renewed.
        """
        self._begin()
        return self._with_fresh_copy(lambda reader: reader.read(name))

    def memory(
        self, name: str | None = None, offset: int = 0, length: int | None = None
    ) -> memoryview:
        """A file, or a part of it, in memory that is the caller's alone: writable, page-aligned,
        gone with the last view of it.

        No slower than `read`, and arrays can be made on it without a copy (`numpy.frombuffer`).

        Args:
            length: fewer bytes come only at the file's end; None: to its end.

        Raises: as `read`; ValueError: offset or length is negative.
        """
        self._begin()
        return self._with_fresh_copy(lambda reader: reader.memory(name, offset, length))

    def open(self, name: str | None = None) -> io.BufferedReader:
        """A file as a binary stream: seekable, read-only. Each read decrypts what it needs.

        Raises: as `read`; reads of the stream raise ArtifactCorrupt where a segment does not
            authenticate, and ModelClosed after `close`.
        """
        self._begin()
        return io.BufferedReader(_ModelFile(self._with_fresh_copy, name), _BUFFER_BYTES)

    @contextmanager
    def materialize(self) -> Iterator[Path]:
        """A private folder in memory-backed storage with all files; gone when the block ends.

        It is gone too after an exception, and when this process is killed. A single-file model is
        one file in the folder.

        Raises:
            LocalDiskFull: memory-backed storage has too little room: both sizes and a hint.
            MemoryStorageMissing, LocalDiskError, CacheUnsafe, and as `read`.
        """
        self._begin()
        sizes = self._copy.reader.sizes()
        with materialized(sizes, self._extract_to) as folder:
            yield folder

    def export(self, folder: str | Path) -> None:
        """Write all files, decrypted, to disk: the one way by which plaintext leaves memory.

        `folder` appears whole or not at all.

        Raises:
            PathUnusable: `folder` exists and is not empty, or its parent does not exist.
            LocalDiskFull, LocalDiskError: nothing is left behind. And as `read`.
        """
        self._begin()
        target = Path(folder).absolute()
        _require_new(target)
        needed = sum(self._copy.reader.sizes().values())
        if (free := free_bytes(target.parent)) < needed:
            raise LocalDiskFull(
                f"the model has {needed:,} bytes, {target.parent} has {free:,} free",
                metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
            )
        # Beside the target, so that the rename stays within one file system.
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.mkdir(mode=0o700)
            self._extract_to(partial)
            if target.is_dir():
                target.rmdir()
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise local_error(error, f"the model cannot be written to {target}") from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def renew(self, ttl: timedelta | None = None) -> LeaseInfo:
        """Extend the lease.

        Raises:
            LeaseExpired, LeaseRevoked, LeaseMaxTtl: it cannot be.
        """
        with self._lock:
            self._require_open()
            sent_s = boottime_s()
            lease = catalogue.renew_lease(self._session, self.lease.name, ttl)
            self._leased = self._leased.renewed(lease, sent_s)
            return lease

    def close(self) -> None:
        """Wipe the key and let go of the artifact. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for copy in (self._copy, *self._retired):
                    copy.close()
                self._leased.data_key.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OpenedModel({self.version.reference})"

    # --- helpers ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Whether something new may be opened."""
        with self._lock:
            self._require_open()
            now_s = boottime_s()
            if now_s >= self._leased.end_s:
                raise LeaseExpired(f"the lease of {self.version.reference} has ended")
            if now_s < self._leased.renew_at_s:
                return
            try:
                self.renew()
            except (LeaseMaxTtl, UnavailableError) as error:
                # It cannot be made longer now; until its end it holds.
                _log.warning("the lease %s was not renewed: %s", self.lease.id, error.reason)

    def _require_open(self) -> None:
        if self._closed:
            raise ModelClosed(f"{self.version.reference} was closed")

    def _extract_to(self, folder: Path) -> None:
        self._with_fresh_copy(lambda reader: reader.extract_to(folder))

    def _with_fresh_copy(self, act: Callable[[ArtifactReader], T]) -> T:
        """Act; if the copy at hand is damaged, once more on one fetched anew (F53)."""
        copy = self._copy
        try:
            return act(copy.reader)
        except ArtifactCorrupt:
            with self._lock:
                self._require_open()
                if copy is self._copy:  # else another thread has fetched it already
                    self._retired.append(copy)  # others may be reading from it
                    self._copy = self._source.open_anew()
                copy = self._copy
            return act(copy.reader)


class _WithFreshCopy(Protocol):
    def __call__(self, act: Callable[[ArtifactReader], T], /) -> T: ...


class _ModelFile(io.RawIOBase):
    """A file of an opened model that outlives the copy it began on: should that turn out to be
    damaged, it goes on in the one fetched anew, at the same place.
    """

    def __init__(self, with_fresh_copy: _WithFreshCopy, name: str | None) -> None:
        super().__init__()
        self._with_fresh_copy = with_fresh_copy
        self._name = name
        self._reader: ArtifactReader | None = None
        self._file: MemberFile | None = None
        self._with_fresh_copy(lambda reader: self._at(reader).tell())  # the name must be there

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        def act(reader: ArtifactReader) -> int:
            return self._at(reader).readinto(buffer) or 0

        return self._with_fresh_copy(act)

    def readall(self) -> bytes:
        return self._with_fresh_copy(lambda reader: self._at(reader).readall())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._with_fresh_copy(lambda reader: self._at(reader).seek(offset, whence))

    def tell(self) -> int:
        return self._with_fresh_copy(lambda reader: self._at(reader).tell())

    def _at(self, reader: ArtifactReader) -> MemberFile:
        if self._file is None or self._reader is not reader:
            place = self._file.tell() if self._file is not None else 0
            self._file = reader.open(self._name)
            self._file.seek(place)
            self._reader = reader
        return self._file


class _Copy:
    """A reader and the file it reads from."""

    def __init__(self, reader: ArtifactReader, file: BinaryIO) -> None:
        self.reader = reader
        self._file = file

    def close(self) -> None:
        self.reader.close()
        self._file.close()


class _Source:
    """Where the artifact of an opened model comes from, now and once more if it is damaged."""

    def __init__(
        self,
        downloader: Downloader,
        version: VersionInfo,
        data_key: SecretBytes,
        progress: ProgressCallback | None,
        link: str,
    ) -> None:
        self._downloader = downloader
        self._version = version
        self._data_key = data_key
        self._progress = progress
        self._link = link

    def open(self) -> _Copy:
        try:
            return self._open()
        except ArtifactCorrupt:
            return self.open_anew()

    def open_anew(self) -> _Copy:
        """
        Raises:
            ArtifactCorrupt: what the store has is damaged too.
        """
        _log.warning("a cached artifact does not authenticate: fetching it anew")
        self._downloader.drop(self._version)
        return self._open()

    def _open(self) -> _Copy:
        file = self._downloader.open(self._version, self._progress, self._authenticates, self._link)
        try:
            return _Copy(self._read(file), file)
        except BaseException:
            file.close()
            raise

    def _read(self, file: BinaryIO) -> ArtifactReader:
        version = self._version
        expected = Expected(version.name, version.uid, version.artifact_id, version.pin)
        return ArtifactReader(file, self._data_key.reveal(), expected)

    def _authenticates(self, file: BinaryIO) -> bool:
        try:
            with self._read(file) as reader:
                reader.verify()
        except ArtifactCorrupt:
            return False
        except ArchiveRejected:
            return True  # encrypted under the key, whatever it is
        return True


def _require_new(target: Path) -> None:
    try:
        empty = not any(target.iterdir())
    except FileNotFoundError:
        empty = True
        if not target.parent.is_dir():
            raise PathUnusable(f"there is no folder {target.parent}") from None
    except OSError as error:
        raise PathUnusable(f"{target} cannot be used: {error.strerror}") from error
    if not empty:
        raise PathUnusable(f"{target} is not empty", hint="name a folder that is not there yet")
