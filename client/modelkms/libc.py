"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """The C library of this process, loaded once; its functions run without the interpreter's lock.

    For Linux only, where its callers have looked: elsewhere a function may not be there.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p  # an int, unless it is told, and addresses are longer
    return library
