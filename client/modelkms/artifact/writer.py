"""Writing an artifact: source → archive → FLOE → a file, with the pin computed on the way.

Two threads, each with one buffer of about 1 MiB of plaintext and one of ciphertext, so memory does
not grow with the model. They share nothing but a counter: what stands where in the artifact follows
from the source's names and sizes, so each reads, encrypts, hashes and writes its own part of it.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from modelkms_api.artifact import (
    DEFAULT_SEGMENT_BYTES,
    FLOE_HEADER_TAG_OFFSET,
    PIN_PIECE_BYTES,
    ArtifactFormatError,
    clear_prefix,
)
from modelkms_api.v1.artifact_pb2 import ArtifactHeader

from modelkms.artifact.extraction import write_at
from modelkms.artifact.floe import Body, Encryptor
from modelkms.artifact.parallel import CHUNK_BYTES, THREADS, ProgressBytes, Work
from modelkms.artifact.pin import ArtifactPin, ParallelDigest
from modelkms.artifact.reader import ArtifactReader
from modelkms.artifact.source import look_at
from modelkms.artifact.source_reader import SourceReader, Stopped
from modelkms.errors import ArtifactCorrupt
from modelkms.folders import reserve


class Sink(Protocol):
    """Anything bytes can be written to, in order."""

    def write(self, data: memoryview, /) -> int | None:
        """Take at least the first byte; how many were taken (None: all)."""
        ...


def write_artifact(
    source: str | Path,
    sink: Sink,
    key: bytes,
    *,
    version: str,
    version_uid: str,
    artifact_id: str,
    segment_length_bytes: int = DEFAULT_SEGMENT_BYTES,
    progress: ProgressBytes | None = None,
) -> ArtifactPin:
    """Encrypt a file or folder. On any error what the sink has got is worthless.

    Args:
        sink: gets the artifact from where it stands; is neither flushed nor closed. An unbuffered
            regular file is written by two threads at once (with holes while it lasts); anything
            else by one, in order, in writes of about 1 MiB.
        key: 32 bytes, for this artifact only.
        version: `projects/{project}/models/{model}/versions/{number}`.
        version_uid, artifact_id: 32 lower-case hexadecimal digits each.
        segment_length_bytes: 4 KiB to 16 MiB.
        progress: called from worker threads, never from two at once.

    Raises:
        PathUnusable, SourceRejected: the source cannot be published (nothing was written).
        SourceChanged: it changed while it was read.
        ValueError: key, names, ids or segment length are malformed (nothing was written).
        OSError: the source cannot be read or the sink cannot be written.
    """
    looked_at = look_at(source)
    header = ArtifactHeader(
        version=version,
        version_uid=version_uid,
        artifact_id=artifact_id,
        payload_kind=looked_at.kind,
        segment_length_bytes=segment_length_bytes,
        file_name=looked_at.file_name,
    )
    return _write(lambda: SourceReader(looked_at), sink, key, header, progress)


def rewrite_artifact(
    reader: ArtifactReader,
    sink: Sink,
    key: bytes,
    *,
    version: str,
    version_uid: str,
    artifact_id: str,
    progress: ProgressBytes | None = None,
) -> ArtifactPin:
    """Encrypt what an artifact holds under another key, for another version: chunks go from one
    key to the other in memory, each verified before it is encrypted. Otherwise as
    `write_artifact`; the payload, and so every file, is the same to the byte.

    Raises:
        ArtifactCorrupt: a segment does not authenticate.
        ModelClosed, ValueError, OSError.
    """
    header = ArtifactHeader(
        version=version,
        version_uid=version_uid,
        artifact_id=artifact_id,
        payload_kind=reader.header.payload_kind,
        segment_length_bytes=reader.header.segment_length_bytes,
        file_name=reader.header.file_name,
    )
    return _write(lambda: _Payload(reader), sink, key, header, progress)


class _Plain(Protocol):
    """Where plaintext comes from. Read by two threads, each its own part."""

    @property
    def total_bytes(self) -> int: ...
    def read_into(self, start: int, buffer: memoryview, /) -> None: ...
    def stop(self) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class _Payload:
    """The plaintext of an open artifact, which its owner closes."""

    def __init__(self, reader: ArtifactReader) -> None:
        self._reader = reader
        self.total_bytes = reader.payload_bytes

    def read_into(self, start: int, buffer: memoryview) -> None:
        if self._reader.read_into(start, buffer) != len(buffer):
            raise ArtifactCorrupt("the artifact ended early")

    def stop(self) -> None:
        """Nobody waits for anybody here."""

    def finish(self) -> None:
        """All of it was verified as it was read."""

    def close(self) -> None:
        """Its owner does."""


def _write(
    opened: Callable[[], _Plain],
    sink: Sink,
    key: bytes,
    header: ArtifactHeader,
    progress: ProgressBytes | None,
) -> ArtifactPin:
    segment_length_bytes = header.segment_length_bytes
    try:
        clear = clear_prefix(header)
    except ArtifactFormatError as error:
        raise ValueError(str(error)) from error
    # artifact-v1 §4.2: FLOE's associated data is the exact encoding of the header.
    encryptor = Encryptor(key, header.SerializeToString(deterministic=True), segment_length_bytes)
    reader, target, digest = opened(), _target(sink), ParallelDigest()
    try:
        body = Body.for_plaintext(reader.total_bytes, segment_length_bytes)
        _Encryption(reader, encryptor, target, digest, body, clear, progress).run()
        reader.finish()
    finally:
        reader.close()
    tag = encryptor.header[FLOE_HEADER_TAG_OFFSET:]
    return ArtifactPin(digest.length_bytes, tag, digest.digest())


class _Encryption:
    """One run over all segments.

    A thread takes a piece of the artifact at a time, one of the 8 MiB of which the pin has digests:
    so the pieces' digests, the slowest part of all, are computed beside each other. To a piece
    belong the segments that end within it.
    """

    def __init__(
        self,
        reader: _Plain,
        encryptor: Encryptor,
        target: _Target,
        digest: ParallelDigest,
        body: Body,
        clear: bytes,
        progress: ProgressBytes | None,
    ) -> None:
        self._reader = reader
        self._encryptor = encryptor
        self._target = target
        self._digest = digest
        self._body = body
        self._head = clear + encryptor.header
        self._segments_each = max(1, CHUNK_BYTES // body.segment_length)
        self._work = Work(range(-(-(len(self._head) + body.body_bytes) // PIN_PIECE_BYTES)))
        self._progress = progress
        self._progress_lock = threading.Lock()
        self._done_bytes = 0

    def run(self) -> None:
        """Write the artifact: clear part, FLOE header, segments."""
        self._target.begin(len(self._head) + self._body.body_bytes)
        head = memoryview(self._head)
        self._target.write(0, head)
        self._digest.add(0, head)
        threads = min(self._target.threads, -(-self._body.body_bytes // PIN_PIECE_BYTES))
        self._work.run(self._encrypt, threads, "modelkms-encrypt")
        self._target.finish(len(self._head) + self._body.body_bytes)

    def _encrypt(self) -> None:
        plain = memoryview(bytearray(self._segments_each * self._body.capacity))
        encrypted = memoryview(bytearray(self._segments_each * self._body.segment_length))
        try:
            while (taken := self._work.take()) is not None:
                positions = self._ending_within(taken[0])
                while positions and not self._work.failed:
                    self._chunk(positions[: self._segments_each], plain, encrypted)
                    positions = positions[self._segments_each :]
        except Stopped:
            pass  # another thread failed, and says why
        except BaseException:
            self._reader.stop()
            raise

    def _ending_within(self, piece: int) -> range:
        """Positions of the segments whose last byte lies in this piece of the artifact."""

        def ending_before(offset: int) -> int:
            body_bytes = offset - len(self._head)
            if body_bytes >= self._body.body_bytes:
                return self._body.segments
            return max(0, body_bytes // self._body.segment_length)

        start = piece * PIN_PIECE_BYTES
        return range(ending_before(start), ending_before(start + PIN_PIECE_BYTES))

    def _chunk(self, positions: range, plain: memoryview, encrypted: memoryview) -> None:
        first, last = positions[0], positions[-1]
        plain_start, start = self._body.plain(first).start, self._body.encrypted(first).start
        plain = plain[: self._body.plain(last).stop - plain_start]
        encrypted = encrypted[: self._body.encrypted(last).stop - start]

        # The sizes were looked at before: a source that gives less has changed, and says so.
        self._reader.read_into(plain_start, plain)
        for position in positions:
            at, to = self._body.plain(position), self._body.encrypted(position)
            self._encryptor.encrypt_into(
                position,
                self._body.is_last(position),
                plain[at.start - plain_start : at.stop - plain_start],
                encrypted[to.start - start : to.stop - start],
            )
        self._target.write(len(self._head) + start, encrypted)
        self._digest.add(len(self._head) + start, encrypted)
        if self._progress is not None:
            with self._progress_lock:
                self._done_bytes += len(plain)
                self._progress(self._done_bytes, self._body.plain_bytes)


# --- where it goes -------------------------------------------------------------------------------


class _Target(Protocol):
    """Where the artifact is written.

    Attributes:
        threads: how many may write at once.
    """

    threads: int

    def begin(self, length_bytes: int) -> None: ...
    def write(self, offset: int, data: memoryview) -> None: ...
    def finish(self, length_bytes: int) -> None: ...


def _target(sink: Sink) -> _Target:
    # A buffered file has a position of its own, and one that is opened for appending writes at its
    # end whatever the offset.
    if isinstance(sink, io.FileIO):
        regular = stat.S_ISREG(os.fstat(sink.fileno()).st_mode)
        if regular and not fcntl.fcntl(sink.fileno(), fcntl.F_GETFL) & os.O_APPEND:
            return _File(sink)
    return _Stream(sink)


class _File:
    """A regular file, written at any offset."""

    threads = THREADS

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._start = file.tell()

    def begin(self, length_bytes: int) -> None:
        reserve(self._file.fileno(), self._start, length_bytes)

    def write(self, offset: int, data: memoryview) -> None:
        write_at(self._file.fileno(), self._start + offset, data)

    def finish(self, length_bytes: int) -> None:
        self._file.seek(self._start + length_bytes)


class _Stream:
    """Anything else. One thread takes one piece after the other, so offsets only ascend."""

    threads = 1

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def begin(self, length_bytes: int) -> None:
        pass

    def write(self, _offset: int, data: memoryview) -> None:
        while data:  # a raw file may take less at once
            taken = self._sink.write(data)
            data = data[len(data) if taken is None else taken :]

    def finish(self, length_bytes: int) -> None:
        pass
