"""Files that have no name and lie in memory (memfd): read by path, changed by nobody."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

from modelkms.errors import LocalDiskFull, MemoryStorageMissing
from modelkms.folders import local_error
from modelkms.swap import KeptFile

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class MemoryFile:
    """Filled once, then sealed, and kept out of unencrypted swap as far as the process may. The
    kernel frees it when the last descriptor and mapping are gone, whatever becomes of the process.

    Args:
        size_bytes: of the content.
        write: is given the descriptor of the empty file; may raise, and then nothing stays.

    Raises:
        MemoryStorageMissing: not on Linux.
        LocalDiskFull: less memory is free than the file needs.
        LocalDiskError: it cannot be written.
    """

    def __init__(self, size_bytes: int, write: Callable[[int], None]) -> None:
        if not hasattr(os, "memfd_create"):
            raise MemoryStorageMissing("files in memory need Linux")
        free = available_memory()
        if free and free < size_bytes:
            raise LocalDiskFull(
                f"the file has {size_bytes:,} bytes, {free:,} of memory are free",
                metadata={"needed_bytes": str(size_bytes), "free_bytes": str(free)},
            )
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self._descriptor = os.memfd_create("modelkms-model", flags)
        try:
            write(self._descriptor)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._kept = KeptFile(self._descriptor, size_bytes)
        except OSError as error:
            os.close(self._descriptor)
            raise local_error(error, "the file cannot be written into memory") from error
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def path(self) -> str:
        # By pid, not by self: children of this process see the same file.
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        self._kept.close()
        os.close(self._descriptor)


def available_memory() -> int:
    """Bytes that new work can have without swapping, as /proc/meminfo tells; 0: unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
