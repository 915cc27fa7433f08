"""Memory that is filled in place and handed out whole, or wiped.

Large buffers ask the kernel for pages of 2 MiB: with pages of 4 KiB the faults of fresh memory take
longer than decrypting into it.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import sys

from modelkms.libc import libc
from modelkms.swap import keep_in_memory

HUGE_PAGE_BYTES = 2 << 20


class FreshBytes:
    """A `bytes` object while it is still ours to fill: no second copy of a large model is made.

    The pages come from the kernel as they are written, so several threads can fill it.

    Attributes:
        view: writable, of the wanted length, zeros at first.
    """

    def __init__(self, length: int) -> None:
        # BytesIO takes over a bytes object that nobody else refers to, lets it be written through
        # getbuffer(), and gives the same object back from getvalue(). An interpreter that copied
        # it instead would be slower and as right.
        self._file = io.BytesIO(bytes(length))
        self.view = self._file.getbuffer()
        _prepare(self.view)

    def take(self) -> bytes:
        """The bytes. Slices of `view` must have been released; nothing can be written any more."""
        self.view.release()
        return self._file.getvalue()

    def wipe(self) -> None:
        """Overwrite with zeros what was written."""
        wipe(self.view)


class FreshMemory:
    """Anonymous memory of its own mapping, aligned for huge pages and for any tensor.

    Attributes:
        view: writable, of the wanted length, zeros at first. The mapping goes with the last view
            of it.
    """

    def __init__(self, length: int) -> None:
        mapping = mmap.mmap(-1, length + HUGE_PAGE_BYTES, flags=_PRIVATE)
        whole = memoryview(mapping)
        start = -_address(whole) % HUGE_PAGE_BYTES if length >= HUGE_PAGE_BYTES else 0
        self.view = whole[start : start + length]
        _prepare(self.view)

    def take(self) -> memoryview:
        """The memory, writable: it is the caller's alone."""
        return self.view

    def wipe(self) -> None:
        """Overwrite with zeros what was written."""
        wipe(self.view)


def wipe(view: memoryview) -> None:
    """Overwrite with zeros, without a copy as large as `view`."""
    zeros = bytes(min(len(view), 1 << 20))
    for start in range(0, len(view), len(zeros) or 1):
        part = view[start : start + len(zeros)]
        part[:] = zeros[: len(part)]


def copy(source: memoryview, target: memoryview) -> None:
    """As `target[:] = source` does, but other threads run meanwhile. Both are writable."""
    if len(source) != len(target):
        raise ValueError("one is longer than the other")
    if source:
        ctypes.memmove(_address(target), _address(source), len(source))


_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _prepare(view: memoryview) -> None:
    """Keep a large buffer out of swap, and ask for huge pages where it spans whole ones. That is
    advice: what comes of it is speed only.

    The memory is freshly mapped: `bytes` of such a size come zeroed from the kernel.
    """
    if sys.platform != "linux" or len(view) < 2 * HUGE_PAGE_BYTES:
        return
    begin = _address(view)
    keep_in_memory(begin, len(view))
    start = -(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    length = (begin + len(view) - start) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
