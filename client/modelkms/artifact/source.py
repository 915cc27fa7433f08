"""What is encrypted: a file or a folder, looked at before it is read and once more afterwards.

Anything else than plain files and folders is refused (F49); whatever changes in between is found by
inode, size and times of change.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelkms_api.artifact import name_fault
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE, PAYLOAD_KIND_ZIP, PayloadKind

from modelkms.artifact import archive
from modelkms.artifact.archive import MAX_MEMBERS, Member, Names
from modelkms.errors import PathUnusable, SourceChanged, SourceRejected

_CLOCK_TICK_S = 0.02
"""Times of change of the kernel are so coarse at most."""

_IDENTITY = struct.Struct("=7Q")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One plain file of a source, as it was when it was looked at. There may be 100,000 of them.

    Attributes:
        folder: from which `name` leads to it.
        identity: another one if another file takes its place, or this one is written.
    """

    folder: Path
    name: str
    size_bytes: int
    identity: bytes

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def changed_ns(self) -> int:
        """Time of its last change (ctime)."""
        return int(_IDENTITY.unpack(self.identity)[-1])


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
        newest_ns = max(file.changed_ns for file in source.files)
        if time.time_ns() - newest_ns > _CLOCK_TICK_S * 1e9:
            break
        # "Racily clean", as git calls it: a file written in this tick of the clock could be
        # written again in the same tick, and look the same. Look again in the next one.
        time.sleep(_CLOCK_TICK_S)
    return source


def is_unchanged(source: Source) -> bool:
    """Whether a source is what it was, as far as a second look can tell."""
    path, files = source.path, source.files
    try:
        if source.kind == PAYLOAD_KIND_FILE:
            return identity(path.lstat()) == files[0].identity
        if not stat.S_ISDIR(path.lstat().st_mode):
            return False
        found = 0
        for file in _files_below(path, None):
            at = bisect_left(files, file.name.encode(), key=lambda file: file.name.encode())
            if at == len(files) or files[at] != file:
                return False
            found += 1
    except (OSError, UnicodeEncodeError, SourceRejected, PathUnusable, SourceChanged):
        return False
    return found == len(files)


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
        file = SourceFile(path.parent, path.name, status.st_size, identity(status))
        return Source(path, PAYLOAD_KIND_FILE, path.name, (file,))
    if not stat.S_ISDIR(status.st_mode):
        raise _special(path, status)
    files = sorted(_files_below(path, Names()), key=lambda file: file.name.encode())
    if not files:
        raise _rejected(path, "it has no file")
    return Source(path, PAYLOAD_KIND_ZIP, "", tuple(files))


def _files_below(folder: Path, names: Names | None) -> Iterator[SourceFile]:
    """In no order. `names`: what is there already; None: they need not be looked at again."""
    count, waiting = 0, [("", folder)]
    while waiting:
        prefix, parent = waiting.pop()
        for entry in _entries(parent):
            name, path = prefix + entry.name, Path(entry.path)
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                raise changed(path) from None
            if stat.S_ISDIR(status.st_mode):
                waiting.append((name + "/", path))
                continue
            if not stat.S_ISREG(status.st_mode):
                raise _special(path, status)
            if names is not None and (fault := names.fault(name)):
                raise _rejected(path, f"its name {fault}")
            count += 1
            if count > MAX_MEMBERS:
                raise _rejected(folder, f"it has more than {MAX_MEMBERS:,} files")
            yield SourceFile(folder, name, status.st_size, identity(status))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            # Sorted, so that of two names that collide always the same is told.
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise changed(folder) from None
    except OSError as error:
        raise PathUnusable(f"{_shown(folder)} cannot be read: {error.strerror}") from error


def identity(status: os.stat_result) -> bytes:
    """Of a file: changes when another file takes the place, or this one is written."""
    second = 10**9
    return _IDENTITY.pack(
        status.st_dev,
        status.st_ino,
        stat.S_IFMT(status.st_mode),
        status.st_size,
        status.st_mtime_ns // second % 2**64,  # a time before 1970 is one too
        status.st_mtime_ns % second,
        status.st_ctime_ns,
    )


# --- errors --------------------------------------------------------------------------------------


def unreadable(path: Path, error: OSError) -> SourceChanged | PathUnusable:
    if isinstance(error, PermissionError):
        return PathUnusable(f"{_shown(path)} cannot be read: {error.strerror}")
    return changed(path)


def _special(path: Path, status: os.stat_result) -> SourceRejected:
    if stat.S_ISLNK(status.st_mode):
        return SourceRejected(
            f"{_shown(path)} is a symbolic link",
            hint=f"publish a copy without links: cp -rL {_shown(path.parent)} COPY",
        )
    return _rejected(path, "it is neither a file nor a folder")


def _rejected(path: Path, why: str) -> SourceRejected:
    return SourceRejected(f"{_shown(path)} cannot be published: {why}")


def changed(path: Path) -> SourceChanged:
    return SourceChanged(f"{_shown(path)} changed while it was read; nothing was published")


def _shown(path: Path) -> str:
    """Printable, whatever bytes a name has."""
    return os.fsencode(path).decode(errors="backslashreplace")
