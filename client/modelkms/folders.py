"""Folders of our own on this machine: private, owned by us, reached by no foreign link."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelkms.errors import CacheUnsafe, LocalDiskError, LocalDiskFull, ModelKmsError
from modelkms.libc import libc

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


def make_private(folder: Path) -> Path:
    """`folder`, made (0700) with its parents if need be, and checked.

    Refused are a folder that is a symbolic link, belongs to somebody else or can be written by
    others, and one below a folder in which others can rename things: whoever can do that chooses
    what we read.

    Raises:
        CacheUnsafe: one of these.
        LocalDiskFull, LocalDiskError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CacheUnsafe(f"{folder} is not a folder, or a dangling link") from error
    except OSError as error:
        raise local_error(error, f"the folder {folder} cannot be made") from error
    _check_own(folder)
    for ancestor in folder.parent.resolve().joinpath("x").parents:
        _check_ancestor(ancestor)
    return folder


def _check_own(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise CacheUnsafe(f"{folder} is a symbolic link or no folder")
    if status.st_uid != os.geteuid():
        raise CacheUnsafe(f"{folder} belongs to another user (uid {status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheUnsafe(
            f"{folder} can be written by others (mode {stat.S_IMODE(status.st_mode):o})",
            hint=f"chmod 700 {folder}, after a look at what is in it",
        )


def _check_ancestor(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise CacheUnsafe(f"{folder}, above it, belongs to another user (uid {status.st_uid})")
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise CacheUnsafe(
            f"{folder}, above it, can be written by everyone "
            f"(mode {stat.S_IMODE(status.st_mode):o})"
        )


def open_private(path: Path, flags: int) -> int:
    """Open a file of ours (0600), never through a link.

    Raises:
        FileNotFoundError: it is not there (and not to be created).
        CacheUnsafe: it is a link, no plain file, not ours, writable by others, or has two names.
        LocalDiskFull, LocalDiskError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CacheUnsafe(f"{path} is not a plain file of ours") from error
        raise local_error(error, f"{path} cannot be opened") from error
    status = os.fstat(descriptor)
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_uid != os.geteuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        or status.st_nlink > 1
    ):
        os.close(descriptor)
        raise CacheUnsafe(f"{path} is not a plain file of ours")
    return descriptor


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock file's lock, if nobody does; yields whether we do.

    The kernel frees it when its holder dies. The holder may remove the file: a lock counts only if
    the file that was locked is still the one of that name.
    """
    try:
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:  # the folder went away
        yield False
        return
    process = os.getpid()
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = _is_named(descriptor, path)
        except BlockingIOError:
            held = False
        yield held
    finally:
        # Said, not left to closing: a process that was forked meanwhile has the file open too. That
        # one must not say it.
        if os.getpid() == process:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def lock(path: Path, timeout_s: float) -> Iterator[bool]:
    """As `try_lock`, waiting for at most `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        with try_lock(path) as held:
            if held or time.monotonic() >= end:
                yield held
                return
        time.sleep(0.02)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino) == (named.st_dev, named.st_ino)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_writing_back(descriptor: int, offset: int, length: int) -> None:
    """Let the kernel begin to write this part of a file to its disk, without waiting, so that
    `fsync` finds little left to do. Advice: it makes nothing durable, and an error of the disk is
    still `fsync`'s to tell.
    """
    if sys.platform == "linux":
        begin, count = ctypes.c_int64(offset), ctypes.c_int64(length)
        libc().sync_file_range(descriptor, begin, count, _SYNC_FILE_RANGE_WRITE)


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Have blocks set aside for a part of a file that is about to be written; its size stays as it
    is. Writing takes a quarter less time then (ADR 0007), and a full disk shows before the work.

    Raises:
        OSError: there is no room. Whatever else may be in the way, `write` has to tell.
    """
    if sys.platform != "linux" or length <= 0:
        return
    begin, count = ctypes.c_int64(offset), ctypes.c_int64(length)
    if libc().fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, begin, count) != 0:
        number = ctypes.get_errno()
        if number in _FULL:
            raise OSError(number, os.strerror(number))


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`; a short write is gone on with, so that its cause shows."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def free_bytes(folder: Path) -> int:
    """What an unprivileged user can still write there."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def local_error(error: OSError, what: str) -> ModelKmsError:
    """LocalDiskFull or LocalDiskError, for a failed `what`."""
    kind = LocalDiskFull if error.errno in _FULL else LocalDiskError
    return kind(f"{what}: {error.strerror or 'I/O error'}")
