"""Memory that is filled in place and handed out whole, or wiped."""

from __future__ import annotations

import io


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

    def take(self) -> bytes:
        """The bytes. Slices of `view` must have been released; nothing can be written any more."""
        self.view.release()
        return self._file.getvalue()

    def wipe(self) -> None:
        """Overwrite with zeros what was written."""
        wipe(self.view)


def wipe(view: memoryview) -> None:
    """Overwrite with zeros, without a copy as large as `view`."""
    zeros = bytes(min(len(view), 1 << 20))
    for start in range(0, len(view), len(zeros) or 1):
        part = view[start : start + len(zeros)]
        part[:] = zeros[: len(part)]
