"""What is encrypted: a file, or a folder as an archive, read once from its start to its end.

A source is looked at, then read, then looked at again. Anything else than plain files and folders
is refused (F49); whatever changes in between is found by inode, size and times of change.
"""

from __future__ import annotations

import os
import stat
import time
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelkms_api.artifact import name_fault
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE, PAYLOAD_KIND_ZIP, PayloadKind

from modelkms.artifact import archive
from modelkms.artifact.archive import MAX_MEMBERS, Member, Names
from modelkms.errors import PathUnusable, SourceChanged, SourceRejected

_CLOCK_TICK_S = 0.02
"""Times of change of the kernel are so coarse at most."""

_Identity = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One plain file of a source, as it was when it was looked at."""

    name: str
    path: Path
    size_bytes: int
    identity: _Identity


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder that can be encrypted.

    Attributes:
        kind: what the artifact's payload will be.
        file_name: of a single file; empty for a folder.
        files: sorted by the UTF-8 bytes of their names.
    """

    path: Path
    kind: PayloadKind.ValueType
    file_name: str
    files: tuple[SourceFile, ...]

    @property
    def plain_bytes(self) -> int:
        """Of the payload: the file, or the archive of the folder."""
        if self.kind == PAYLOAD_KIND_FILE:
            return self.files[0].size_bytes
        return archive.archive_bytes(self.members())

    def members(self) -> Iterator[Member]:
        """Where each file goes in the archive."""
        return archive.lay_out((file.name, file.size_bytes) for file in self.files)


# --- looking -------------------------------------------------------------------------------------


def look_at(path: str | Path) -> Source:
    """Look at a source without reading it.

    Empty folders inside are left out: a model is its files.

    Raises:
        PathUnusable: there is nothing at `path`, or it cannot be looked at.
        SourceRejected: it is or has something else than plain files and folders (symbolic links,
            FIFOs, devices, sockets), has no file at all, more than 100,000, or names that an
            archive cannot hold (artifact-v1 §5.2).
        SourceChanged: it changes all the time.
    """
    path = Path(path)
    for _ in range(3):
        source = _look(path)
        newest_ns = max(file.identity[-1] for file in source.files)
        if time.time_ns() - newest_ns > _CLOCK_TICK_S * 1e9:
            break
        # "Racily clean", as git calls it: a file written in this tick of the clock could be
        # written again in the same tick, and look the same. Look again in the next one.
        time.sleep(_CLOCK_TICK_S)
    return source


def _look(path: Path) -> Source:
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise PathUnusable(f"there is nothing at {path}") from error
    except OSError as error:
        raise PathUnusable(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode):
        if fault := name_fault(path.name):
            raise _rejected(path, f"its name {fault}")
        file = SourceFile(path.name, path, status.st_size, _identity(status))
        return Source(path, PAYLOAD_KIND_FILE, path.name, (file,))
    if not stat.S_ISDIR(status.st_mode):
        raise _special(path, status)
    files = sorted(_files_below(path), key=lambda file: file.name.encode())
    if not files:
        raise _rejected(path, "it has no file")
    return Source(path, PAYLOAD_KIND_ZIP, "", tuple(files))


def _files_below(folder: Path) -> Iterator[SourceFile]:
    names, count, waiting = Names(), 0, [("", folder)]
    while waiting:
        prefix, parent = waiting.pop()
        for entry in _entries(parent):
            name, path = prefix + entry.name, Path(entry.path)
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                raise _changed(path) from None
            if stat.S_ISDIR(status.st_mode):
                waiting.append((name + "/", path))
                continue
            if not stat.S_ISREG(status.st_mode):
                raise _special(path, status)
            if fault := names.fault(name):
                raise _rejected(path, f"its name {fault}")
            count += 1
            if count > MAX_MEMBERS:
                raise _rejected(folder, f"it has more than {MAX_MEMBERS:,} files")
            yield SourceFile(name, path, status.st_size, _identity(status))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            # Sorted, so that of two names that collide always the same is told.
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise _changed(folder) from None
    except OSError as error:
        raise PathUnusable(f"{_shown(folder)} cannot be read: {error.strerror}") from error


def _identity(status: os.stat_result) -> _Identity:
    """Changes when another file takes the place, or this one is written."""
    return (
        status.st_dev,
        status.st_ino,
        stat.S_IFMT(status.st_mode),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


# --- reading -------------------------------------------------------------------------------------


class SourceReader:
    """The payload's plaintext in order. Not safe to use from several threads at once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pieces = self._file() if source.kind == PAYLOAD_KIND_FILE else self._archive()
        self._piece: _FilePiece | memoryview = memoryview(b"")
        self.total_bytes = source.plain_bytes

    def fill(self, buffer: memoryview) -> int:
        """Put the next bytes into `buffer`; fewer than it holds only at the end.

        Raises:
            SourceChanged: the source is not what it was when it was looked at.
            OSError: it cannot be read.
        """
        filled = 0
        while filled < len(buffer):
            piece = self._piece
            if isinstance(piece, memoryview):
                taken = min(len(piece), len(buffer) - filled)
                buffer[filled : filled + taken] = piece[:taken]
                self._piece = piece[taken:]
            else:
                taken = piece.read_into(buffer[filled:])
            filled += taken
            if taken == 0:
                following = next(self._pieces, None)
                if following is None:
                    break
                self._piece = following
        return filled

    def finish(self) -> None:
        """Look at the source once more, after its last byte.

        Raises:
            SourceChanged: it is not what it was.
        """
        if self.fill(memoryview(bytearray(1))):  # this also has the last file looked at and closed
            raise _changed(self._source.path)
        try:
            now = _look(self._source.path)
        except (SourceRejected, PathUnusable) as error:
            raise _changed(self._source.path) from error
        if now != self._source:
            raise _changed(self._source.path)

    def close(self) -> None:
        """Close a file that is being read."""
        self._pieces.close()

    def _file(self) -> _Pieces:
        with _FilePiece(self._source.files[0]) as piece:
            yield piece

    def _archive(self) -> _Pieces:
        """artifact-v1 §5.1: members by ascending names, then the directory, then the end."""
        directory: list[bytes] = []
        member: Member | None = None
        for file, member in zip(self._source.files, self._source.members(), strict=True):
            yield memoryview(archive.local_header(member))
            with _FilePiece(file, with_crc32=True) as piece:
                yield piece
            yield memoryview(archive.descriptor(member, piece.crc32))
            directory.append(archive.directory_entry(member, piece.crc32))
        assert member is not None  # a folder without files is refused
        entries = b"".join(directory)
        yield memoryview(entries)
        at = archive.directory_offset(member)
        yield memoryview(archive.tail(len(directory), at, len(entries)))


_Pieces = Generator["_FilePiece | memoryview"]


class _FilePiece:
    """One file, open, of exactly the size it had."""

    def __init__(self, file: SourceFile, *, with_crc32: bool = False) -> None:
        self._file = file
        self._left = file.size_bytes
        self._with_crc32 = with_crc32
        self.crc32 = 0
        try:
            # Not through a link that took the file's place; not waiting for a FIFO's writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(file.path, flags)
        except OSError as error:
            raise _unreadable(file.path, error) from error
        try:
            self._check()
        except BaseException:
            os.close(self._descriptor)
            raise

    def read_into(self, buffer: memoryview) -> int:
        if self._left == 0:
            return 0
        taken = os.readv(self._descriptor, [buffer[: self._left]])
        if taken == 0:
            raise _changed(self._file.path)  # it became shorter
        if self._with_crc32:
            self.crc32 = zlib.crc32(buffer[:taken], self.crc32)
        self._left -= taken
        return taken

    def __enter__(self) -> _FilePiece:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                self._check()
        finally:
            os.close(self._descriptor)

    def _check(self) -> None:
        if _identity(os.fstat(self._descriptor)) != self._file.identity:
            raise _changed(self._file.path)


# --- errors --------------------------------------------------------------------------------------


def _unreadable(path: Path, error: OSError) -> SourceChanged | PathUnusable:
    if isinstance(error, PermissionError):
        return PathUnusable(f"{_shown(path)} cannot be read: {error.strerror}")
    return _changed(path)


def _special(path: Path, status: os.stat_result) -> SourceRejected:
    if stat.S_ISLNK(status.st_mode):
        return SourceRejected(
            f"{_shown(path)} is a symbolic link",
            hint=f"publish a copy without links: cp -rL {_shown(path.parent)} COPY",
        )
    return _rejected(path, "it is neither a file nor a folder")


def _rejected(path: Path, why: str) -> SourceRejected:
    return SourceRejected(f"{_shown(path)} cannot be published: {why}")


def _changed(path: Path) -> SourceChanged:
    return SourceChanged(f"{_shown(path)} changed while it was read; nothing was published")


def _shown(path: Path) -> str:
    """Printable, whatever bytes a name has."""
    return os.fsencode(path).decode(errors="backslashreplace")
