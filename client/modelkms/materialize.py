"""Plaintext for programs that want a path: a private folder in memory, gone when it is not needed.

A folder outlives its owner by no longer than it takes a small process, the reaper, to notice; what
even that leaves behind (both killed at once), the next start sweeps. No signal handlers, no atexit:
the process that uses the SDK is not ours.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from modelkms import _reaper
from modelkms.errors import CacheUnsafe, LocalDiskFull, MemoryStorageMissing, ModelKmsError
from modelkms.folders import free_bytes, local_error, make_private, open_private
from modelkms.libc import libc
from modelkms.swap import files_kept_in_memory

_log = logging.getLogger("modelkms")

Write = Callable[[Path], None]
"""Writes the model into a new, empty folder."""

_MEMORY_MAGIC = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}
"""statfs(2): f_type."""
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - checked: ours, private, in memory
_CONTENT = "model"
_OWNER = "owner"
_LOCK = "lock"
_REAPER_WAIT_S = 5.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def materialized(
    sizes_bytes: Mapping[str, int],
    write: Write,
    environment: Mapping[str, str] | None = None,
    *,
    insecure_folder: Path | None = None,
) -> Iterator[Path]:
    """A private folder (0700) in memory-backed storage, filled by `write`; removed on exit.

    Args:
        sizes_bytes: of every file that `write` is going to write.
        write: may raise; then nothing stays.
        environment: None: `os.environ`.
        insecure_folder: where there is no memory-backed storage, the private folder is made in
            this one, on a disk, and plaintext may stay on it; None: never.

    Raises:
        MemoryStorageMissing: no memory-backed storage here.
        LocalDiskFull: it has too little room.
        LocalDiskError, CacheUnsafe: it cannot be used.
    """
    root = _root(os.environ if environment is None else environment, insecure_folder)
    _require_room(root, sizes_bytes)
    with _owned_folder(root) as folder:
        content = folder / _CONTENT
        try:
            content.mkdir(mode=0o700)
            write(content)
        except OSError as error:
            raise local_error(error, f"the model cannot be written to {root}") from error
        with files_kept_in_memory(content):
            yield content


def sweep(
    environment: Mapping[str, str] | None = None, *, insecure_folder: Path | None = None
) -> int:
    """Remove what dead processes left behind. How many folders; never one of a live owner."""
    removed = 0
    bases = list(_memory_folders(os.environ if environment is None else environment))
    for base in [*bases, *([insecure_folder] if insecure_folder is not None else [])]:
        root = base / _root_name()
        if root.is_dir() and not root.is_symlink() and root.lstat().st_uid == os.geteuid():
            with _root_lock(root):
                removed += _sweep_locked(root)
    return removed


# --- where -------------------------------------------------------------------------------------


def _root(environment: Mapping[str, str], insecure_folder: Path | None) -> Path:
    for base in _memory_folders(environment):
        try:
            return make_private(base / _root_name())
        except CacheUnsafe as error:
            error.hint = f"somebody else made {base / _root_name()}; an administrator removes it"
            raise
    if insecure_folder is not None:
        _log.warning("plaintext is written to a disk: insecure_plaintext_dir, %s", insecure_folder)
        return make_private(make_private(insecure_folder) / _root_name())
    raise MemoryStorageMissing(
        "there is no memory-backed folder here: /dev/shm is no writable tmpfs, and neither is "
        "XDG_RUNTIME_DIR"
    )


def _root_name() -> str:
    return f"modelkms-{os.geteuid()}"


def _memory_folders(environment: Mapping[str, str]) -> Iterator[Path]:
    """The shared-memory mount, then the user's runtime folder: those that really are in memory."""
    for name in (_SHARED_MEMORY, environment.get("XDG_RUNTIME_DIR", "")):
        if name and is_memory_backed(Path(name)) and os.access(name, os.W_OK | os.X_OK):
            yield Path(name)


def is_memory_backed(folder: Path) -> bool:
    """Whether the folder lies on tmpfs or ramfs, as statfs(2) tells. False off Linux."""
    if sys.platform != "linux":
        return False
    # struct statfs begins with the type, a long, on every 64-bit Linux; it is under 256 bytes.
    answer = ctypes.create_string_buffer(256)
    if libc().statfs(os.fsencode(folder), answer) != 0:
        return False
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF in _MEMORY_MAGIC


def _require_room(root: Path, sizes_bytes: Mapping[str, int]) -> None:
    """Before a byte is written: tmpfs stores whole pages, and one more for each name."""
    needed = sum(
        -(-size // _PAGE_BYTES) * _PAGE_BYTES + _PAGE_BYTES for size in sizes_bytes.values()
    )
    if (free := free_bytes(root)) < needed:
        raise LocalDiskFull(
            f"the model needs {needed:,} bytes, {root.parent} has {free:,} free",
            hint=f"mount -o remount,size={-(-needed // (1 << 30)) + 1}G {root.parent}, or in "
            f"Docker --shm-size; .read() and .open() need none",
            metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
        )


# --- the folder and its owner --------------------------------------------------------------------


@contextmanager
def _owned_folder(root: Path) -> Iterator[Path]:
    """A new folder under `root`, with an owner's lock and a reaper; both end with us.

    The lock tells a live owner from a dead one even where processes of several PID namespaces
    share /dev/shm; the kernel frees it when the owner dies. Pid and start time are for people.
    """
    folder, process = root / secrets.token_hex(8), os.getpid()
    with _root_lock(root):  # no sweep may see the folder before its owner's lock is held
        _sweep_locked(root)
        folder.mkdir(mode=0o700)
        owner = open_private(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(owner, fcntl.LOCK_EX)
        os.write(owner, json.dumps({"pid": os.getpid(), "start": _start_time()}).encode())
    reaper = None
    try:
        reaper = _start_reaper(folder)
        yield folder
    finally:
        if os.getpid() == process:  # a fork that leaves the block is not the owner
            _remove(folder)
            os.close(owner)
            if reaper is not None:
                _end_reaper(reaper, folder)


def _start_reaper(folder: Path) -> subprocess.Popen[bytes] | None:
    # A frozen program's sys.executable is the program itself.
    if not sys.executable or getattr(sys, "frozen", False):
        _log.warning("no reaper can run here: a killed process leaves plaintext until next start")
        return None
    try:
        return subprocess.Popen(  # noqa: S603 - our own file, by our own interpreter
            [sys.executable, "-I", "-S", _reaper.__file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,
        )
    except OSError as error:
        raise local_error(error, "the reaper process cannot be started") from error


def _end_reaper(reaper: subprocess.Popen[bytes], folder: Path) -> None:
    """It is not needed any more; where something could not be removed, it tries once more."""
    assert reaper.stdin is not None
    reaper.stdin.close()
    if not folder.exists():
        reaper.kill()  # a fork of ours may hold the pipe open: do not wait for that
    try:
        reaper.wait(_REAPER_WAIT_S)
    except subprocess.TimeoutExpired:
        reaper.kill()
        reaper.wait()


def _remove(folder: Path) -> None:
    if not _reaper.remove(str(folder)):
        _log.error("plaintext could not be removed from %s; the next start tries again", folder)


# --- sweeping ------------------------------------------------------------------------------------


@contextmanager
def _root_lock(root: Path) -> Iterator[None]:
    descriptor = open_private(root / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep_locked(root: Path) -> int:
    """Remove the folders whose owner's lock is free. We hold the root's lock."""
    removed = 0
    for folder in root.iterdir():
        if folder.name == _LOCK or folder.is_symlink() or not folder.is_dir():
            continue
        if not _owner_alive(folder):
            _log.info("removing what a dead process left: %s", folder.name)
            _remove(folder)
            removed += 1
    return removed


def _owner_alive(folder: Path) -> bool:
    """Whether the folder's owner holds its lock. One that never came to take it is dead: folder and
    lock are made under the root's lock, which we hold."""
    try:
        descriptor = open_private(folder / _OWNER, os.O_RDWR)
    except (FileNotFoundError, ModelKmsError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _start_time() -> int | None:
    """Clock ticks after boot at which this process began (proc(5), field 22); None off Linux."""
    try:
        text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    return int(text.rsplit(")", 1)[1].split()[19])
