"""The plaintext of a payload, at any offset, from the file or folder that it is made of."""

from __future__ import annotations

import os
import threading
import zlib
from array import array
from bisect import bisect_right

from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE

from modelkms.artifact import archive
from modelkms.artifact.archive import Member
from modelkms.artifact.checksum import crc32_joined
from modelkms.artifact.source import (
    Source,
    SourceFile,
    changed,
    identity,
    is_unchanged,
    unreadable,
)


class SourceReader:
    """The payload's plaintext. Safe to use from several threads.

    Each byte is to be read once, and none may be waited for in vain: what stands in an archive
    behind a file depends on the file's CRC-32, so whoever reads on waits for those who read before.

    Attributes:
        total_bytes: of the payload.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._payload: _FilePayload | _ArchivePayload
        if source.kind == PAYLOAD_KIND_FILE:
            self._payload = _FilePayload(source.files[0])
            self.total_bytes = source.files[0].size_bytes
        else:
            self._payload = _ArchivePayload(source)
            self.total_bytes = self._payload.total_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the payload's bytes from `offset`; all of them are within it.

        Raises:
            SourceChanged: the source is not what it was when it was looked at.
            OSError: it cannot be read.
        """
        self._payload.read_into(offset, buffer)

    def finish(self) -> None:
        """Look at the source once more, after its last byte.

        Raises:
            SourceChanged: it is not what it was.
        """
        if not is_unchanged(self._source):
            raise changed(self._source.path)

    def stop(self) -> None:
        """Nothing more will be read: wake those who wait for it. They raise `Stopped`."""
        self._payload.stop()

    def close(self) -> None:
        """Close a file that is being read. Idempotent."""
        self._payload.close()


class Stopped(Exception):
    """What was waited for will not come."""


class _FilePayload:
    """One file is the payload."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._descriptor = _opened(file)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        _read_exactly(self._file, self._descriptor, offset, buffer)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _ArchivePayload:
    """A folder: members by ascending names, then the directory, then the end (artifact-v1 §5.1).

    Where everything stands follows from names and sizes, so it can be read at any offset. Kept in
    memory are an offset and a CRC-32 a member, and at last the directory.
    """

    def __init__(self, source: Source) -> None:
        self._files = source.files
        self._starts = array("Q")
        directory_bytes = 0
        for member in source.members():
            self._starts.append(member.header_offset)
            directory_bytes += archive.directory_entry_bytes(member)
        self._directory_at = archive.directory_offset(member)
        self.total_bytes = self._directory_at + directory_bytes + archive.TAIL_BYTES
        self._checksums = _Checksums([file.size_bytes for file in source.files])
        self._end = b""
        self._end_lock = threading.Lock()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        number = bisect_right(self._starts, offset) - 1
        while buffer:
            if offset < self._directory_at:
                taken = self._read_member(number, offset, buffer)
                number += 1
            else:
                taken = _copied(self._directory_and_end(), offset - self._directory_at, buffer)
            offset += taken
            buffer = buffer[taken:]

    def stop(self) -> None:
        self._checksums.stop()

    def close(self) -> None:
        pass

    def _read_member(self, number: int, offset: int, buffer: memoryview) -> int:
        """A member's header, content and descriptor from `offset`, as far as `buffer` reaches; how
        many bytes."""
        member = self._member(number)
        taken = 0
        if offset < member.offset:
            header = archive.local_header(member)
            taken += _copied(header, offset - member.header_offset, buffer)
        if member.offset <= offset + taken < member.end and taken < len(buffer):
            start = offset + taken - member.offset
            content = buffer[taken : taken + member.size_bytes - start]
            file = self._files[number]
            descriptor = _opened(file)
            try:
                _read_exactly(file, descriptor, start, content)
            finally:
                os.close(descriptor)
            self._checksums.add(number, start, len(content), zlib.crc32(content))
            taken += len(content)
        if offset + taken >= member.end and taken < len(buffer):
            descriptor_bytes = archive.descriptor(member, self._checksums.of(number))
            taken += _copied(descriptor_bytes, offset + taken - member.end, buffer[taken:])
        return taken

    def _member(self, number: int) -> Member:
        file = self._files[number]
        return archive.placed(file.name, file.size_bytes, self._starts[number])

    def _directory_and_end(self) -> bytes:
        with self._end_lock:
            if not self._end:
                count = len(self._files)
                directory = b"".join(
                    archive.directory_entry(self._member(number), self._checksums.of(number))
                    for number in range(count)
                )
                self._end = directory + archive.tail(count, self._directory_at, len(directory))
            return self._end


class _Checksums:
    """CRC-32s of files whose parts are read in any order, by several threads."""

    def __init__(self, sizes_bytes: list[int]) -> None:
        self._missing_bytes = array("Q", sizes_bytes)
        self._checksums = array("I", bytes(4 * len(sizes_bytes)))
        self._runs: dict[int, list[_Run]] = {}
        self._changed = threading.Condition()
        self._stopped = False

    def add(self, number: int, start: int, length_bytes: int, crc32: int) -> None:
        """A part of a file was read."""
        with self._changed:
            runs = self._runs.pop(number, [])
            runs.append((start, start + length_bytes, crc32))
            self._missing_bytes[number] -= length_bytes
            runs = _joined(runs)
            if self._missing_bytes[number] > 0:
                self._runs[number] = runs
                return
            ((_, _, self._checksums[number]),) = runs
            self._changed.notify_all()

    def of(self, number: int) -> int:
        """Of a whole file; waits until all of it was read.

        Raises:
            Stopped: it will not be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._missing_bytes[number] == 0 or self._stopped)
            if self._stopped:
                raise Stopped
            return self._checksums[number]

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


_Run = tuple[int, int, int]
"""From, to, CRC-32 of what is between."""


def _joined(runs: list[_Run]) -> list[_Run]:
    """The same with neighbours made one: as few as there are threads, however long the file is."""
    result: list[_Run] = []
    for start, stop, crc32 in sorted(runs):
        if result and result[-1][1] == start:
            before, _, first = result.pop()
            result.append((before, stop, crc32_joined(first, crc32, stop - start)))
        else:
            result.append((start, stop, crc32))
    return result


def _copied(data: bytes, start: int, buffer: memoryview) -> int:
    """Copy from `data` what fits, from `start`; how many bytes."""
    part = memoryview(data)[start : start + len(buffer)]
    buffer[: len(part)] = part
    return len(part)


def _opened(file: SourceFile) -> int:
    """
    Raises:
        SourceChanged: it is another than was looked at.
        PathUnusable: we may not read it.
    """
    try:
        # Not through a link that took the file's place; not waiting for a FIFO's writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(file.path, flags)
    except OSError as error:
        raise unreadable(file.path, error) from error
    if identity(os.fstat(descriptor)) != file.identity:
        os.close(descriptor)
        raise changed(file.path)
    return descriptor


def _read_exactly(file: SourceFile, descriptor: int, offset: int, buffer: memoryview) -> None:
    while buffer:
        taken = os.preadv(descriptor, [buffer], offset)
        if taken == 0:
            raise changed(file.path)  # it became shorter
        offset += taken
        buffer = buffer[taken:]
