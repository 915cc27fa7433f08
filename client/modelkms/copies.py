"""The copy of an artifact that an opened model reads from, and a fresh one if it is damaged."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from modelkms.artifact.reader import ArtifactReader, Expected, MemberFile
from modelkms.download import Downloader
from modelkms.errors import ArchiveRejected, ArtifactCorrupt
from modelkms.secret import SecretBytes
from modelkms.timings import Stopwatch
from modelkms.types import ProgressCallback, VersionInfo

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_log = logging.getLogger("modelkms")

T = TypeVar("T")


class ArtifactCopy:
    """A reader and the file it reads from."""

    def __init__(self, reader: ArtifactReader, file: BinaryIO) -> None:
        self.reader = reader
        self._file = file

    def close(self) -> None:
        self.reader.close()
        self._file.close()


class ArtifactSource:
    """Where the artifact of an opened model comes from, now and once more if it is damaged."""

    def __init__(
        self,
        downloader: Downloader,
        version: VersionInfo,
        data_key: SecretBytes,
        progress: ProgressCallback | None,
        link: str,
        watch: Stopwatch,
    ) -> None:
        self.watch = watch
        self._downloader = downloader
        self._version = version
        self._data_key = data_key
        self._progress = progress
        self._link = link

    def open(self) -> ArtifactCopy:
        try:
            return self._open()
        except ArtifactCorrupt:
            return self.open_anew()

    def open_anew(self) -> ArtifactCopy:
        """
        Raises:
            ArtifactCorrupt: what the store has is damaged too.
        """
        _log.warning("a cached artifact does not authenticate: fetching it anew")
        self._downloader.drop(self._version)
        return self._open()

    def _open(self) -> ArtifactCopy:
        with self.watch.step("download"):
            file = self._downloader.open(
                self._version, self._progress, self._authenticates, self._link
            )
        try:
            with self.watch.step("decrypt"):
                return ArtifactCopy(self._read(file), file)
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


class WithFreshCopy(Protocol):
    def __call__(self, act: Callable[[ArtifactReader], T], /) -> T: ...


class ModelFile(io.RawIOBase):
    """A file of an opened model that outlives the copy it began on: should that turn out to be
    damaged, it goes on in the one fetched anew, at the same place.
    """

    def __init__(self, with_fresh_copy: WithFreshCopy, name: str | None) -> None:
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
