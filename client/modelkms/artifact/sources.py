"""Where ciphertext is read from: anything that has a length and gives bytes at an offset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from modelkms.errors import ArtifactCorrupt


@runtime_checkable
class ArtifactSource(Protocol):
    """A stored artifact. Safe to use from several threads at once."""

    @property
    def length_bytes(self) -> int:
        """Of the whole artifact file; does not change."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; how many bytes, fewer than it holds only at the end."""
        ...


AnySource = ArtifactSource | BinaryIO | Path | str | bytes
"""A source, an open file, a path, or the bytes themselves."""


class FileSource:
    """An open file; its position is neither used nor moved. Does not close it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size

    @property
    def length_bytes(self) -> int:
        return self._length

    def read_into(self, offset: int, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            taken = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            if taken == 0:
                break
            filled += taken
        return filled


class BytesSource:
    """An artifact in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B")

    @property
    def length_bytes(self) -> int:
        return len(self._view)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        part = self._view[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


@contextmanager
def opened_source(source: AnySource) -> Iterator[ArtifactSource]:
    """`source` as an `ArtifactSource`, closed afterwards if it was opened here.

    A file that was opened by somebody else stays theirs, and must stay open.
    """
    if isinstance(source, Path | str):
        with Path(source).open("rb", buffering=0) as file:
            yield FileSource(file.fileno())
    elif isinstance(source, bytes | bytearray | memoryview):
        yield BytesSource(source)
    elif isinstance(source, ArtifactSource):
        yield source
    else:
        yield FileSource(source.fileno())


def read_exactly(source: ArtifactSource, offset: int, length: int) -> bytes:
    """
    Raises:
        ArtifactCorrupt: the source ends before.
    """
    buffer = bytearray(length)
    read_all_into(source, offset, memoryview(buffer))
    return bytes(buffer)


def read_all_into(source: ArtifactSource, offset: int, buffer: memoryview) -> None:
    """
    Raises:
        ArtifactCorrupt: the source ends before `buffer` is full.
    """
    if source.read_into(offset, buffer) != len(buffer):
        raise ArtifactCorrupt("the artifact became shorter while it was read")
