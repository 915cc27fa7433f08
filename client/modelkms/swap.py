"""Swap: the one way by which memory reaches a disk without anybody writing a file (F55).

Where an unencrypted swap area is in use, plaintext is locked into memory as far as the process may
(RLIMIT_MEMLOCK, CAP_IPC_LOCK); where it may not, a warning says so, once. Wiping does not reach
what was swapped out before.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from modelkms.libc import libc

_log = logging.getLogger("modelkms")

_SWAPS = Path("/proc/swaps")
_BLOCK_DEVICES = Path("/sys/class/block")
_warned = False


def unsafe_swaps(swaps: Path = _SWAPS, devices: Path = _BLOCK_DEVICES) -> list[str]:
    """Swap areas in use from which plaintext could be read later. Compressed memory (zram) and
    devices under dm-crypt are none; of a file it cannot be told on what it lies."""
    try:
        areas = [line.split()[0] for line in swaps.read_text().splitlines()[1:] if line.strip()]
    except OSError:
        return []
    return [area for area in areas if not _is_safe(Path(area), devices)]


def _is_safe(area: Path, devices: Path) -> bool:
    if area.name.startswith("zram"):
        return True
    try:
        return (devices / area.name / "dm" / "uuid").read_text().startswith("CRYPT-")
    except OSError:
        return False


def keep_in_memory(address: int, length_bytes: int) -> None:
    """Lock memory, also what of it is touched later, if it could be swapped out unencrypted. It is
    unlocked when it is unmapped."""
    if (areas := unsafe_swaps()) and not _locked(address, length_bytes, _ON_FAULT):
        _warn(areas)


@contextmanager
def files_kept_in_memory(folder: Path) -> Iterator[None]:
    """Lock all files of a folder on tmpfs, for as long as the block lasts."""
    with ExitStack() as mappings:
        if areas := unsafe_swaps():
            files = [path for path in folder.rglob("*") if path.is_file()]
            if [path for path in files if not _file_locked(path, mappings)]:  # try each of them
                _warn(areas)
        yield


class KeptFile:
    """Locks all of a nameless file in memory (memfd) until `close`, if it could be swapped out
    unencrypted. To be made when the file is filled.

    Whoever has the file mapped beyond that keeps its content, then no longer locked.
    """

    def __init__(self, descriptor: int, length_bytes: int) -> None:
        self._length = length_bytes
        self._address: int | None = None
        if not length_bytes or not (areas := unsafe_swaps()):
            return
        # Private and read-only, by mmap(2) itself: a shared or writable mapping would be in the
        # way of sealing, or be given copies of the pages; and the address of a read-only mmap
        # object cannot be had.
        address = libc().mmap(
            None,
            ctypes.c_size_t(length_bytes),
            mmap.PROT_READ,
            mmap.MAP_PRIVATE,
            descriptor,
            ctypes.c_long(0),
        )
        if address is None or address == _MAP_FAILED:
            _warn(areas)
            return
        self._address = address
        if not _locked(address, length_bytes, 0):
            _warn(areas)

    def close(self) -> None:
        """Idempotent."""
        if self._address is not None:
            libc().munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self._length))
            self._address = None


_MAP_FAILED = ctypes.c_void_p(-1).value


def _file_locked(path: Path, mappings: ExitStack) -> bool:
    if path.stat().st_size == 0:
        return True
    try:
        with path.open("r+b") as file:  # writable, only so that its address can be had
            mapping = mappings.enter_context(mmap.mmap(file.fileno(), 0))
    except OSError:
        return False
    view = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(view)
    del view  # a mapping with views cannot be closed
    # All of it now: whoever reads the file later does not do so through this mapping.
    return _locked(address, len(mapping), 0)


_ON_FAULT = 1
"""mlock2(2): MLOCK_ONFAULT."""


def _locked(address: int, length_bytes: int, flags: int) -> bool:
    if sys.platform != "linux" or length_bytes == 0:
        return length_bytes == 0
    page = os.sysconf("SC_PAGE_SIZE")
    start = address // page * page
    length = address + length_bytes - start
    return bool(libc().mlock2(ctypes.c_void_p(start), ctypes.c_size_t(length), flags) == 0)


def _warn(areas: list[str]) -> None:
    global _warned
    if not _warned:
        _warned = True
        _log.warning(
            "plaintext may reach %s: not all of it can be locked into memory "
            "(encrypt swap, do without, or raise RLIMIT_MEMLOCK)",
            ", ".join(areas),
        )
