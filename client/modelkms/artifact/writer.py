"""Writing an artifact: source → archive → FLOE → any writable, with the pin computed on the way.

Two threads take turns: while one encrypts, the other reads, writes or hashes. Each has one buffer
of about 1 MiB of plaintext and one of ciphertext, so memory does not grow with the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from modelkms_api.artifact import (
    DEFAULT_SEGMENT_BYTES,
    FLOE_HEADER_TAG_OFFSET,
    ArtifactFormatError,
    PinDigest,
    clear_prefix,
)
from modelkms_api.v1.artifact_pb2 import ArtifactHeader

from modelkms.artifact.floe import Body, Encryptor
from modelkms.artifact.pin import ArtifactPin
from modelkms.artifact.source import SourceReader, look_at

CHUNK_BYTES = 1 << 20
"""About so much is read, encrypted, hashed and written at once."""
_THREADS = 2

ProgressBytes = Callable[[int, int], None]
"""(plaintext bytes done, of how many)."""


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
        sink: gets the artifact in order, in writes of about 1 MiB; is neither flushed nor closed.
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
    try:
        clear = clear_prefix(header)
    except ArtifactFormatError as error:
        raise ValueError(str(error)) from error
    # artifact-v1 §4.2: FLOE's associated data is the exact encoding of the header.
    encryptor = Encryptor(key, header.SerializeToString(deterministic=True), segment_length_bytes)
    reader = SourceReader(looked_at)
    try:
        pipeline = _Pipeline(reader, encryptor, sink, segment_length_bytes, progress)
        pipeline.run(clear)
        reader.finish()
    finally:
        reader.close()
    pin = pipeline.pin
    return ArtifactPin(pin.length_bytes, encryptor.header[FLOE_HEADER_TAG_OFFSET:], pin.digest())


class _Pipeline:
    """Chunks of whole segments; each is read, encrypted, written and hashed by one thread.

    Reading, writing and hashing happen in order, encrypting in any. Hashing is the slowest of the
    three, so it goes on beside the writing of the next chunk.
    """

    def __init__(
        self,
        reader: SourceReader,
        encryptor: Encryptor,
        sink: Sink,
        segment_length: int,
        progress: ProgressBytes | None,
    ) -> None:
        self._reader = reader
        self._encryptor = encryptor
        self._sink = sink
        self._progress = progress
        self._body = Body.for_plaintext(reader.total_bytes, segment_length)
        self._segments_each = max(1, CHUNK_BYTES // segment_length)
        self._chunks = -(-self._body.segments // self._segments_each)
        self._reading, self._writing, self._hashing = _Turns(), _Turns(), _Turns()
        self._failure: BaseException | None = None
        self.pin = PinDigest()

    def run(self, clear: bytes) -> None:
        """Write the artifact: `clear`, FLOE header, segments."""
        head = clear + self._encryptor.header
        _write_all(self._sink, memoryview(head))
        self.pin.update(head)

        threads = min(_THREADS, self._chunks)
        helpers = [
            threading.Thread(target=self._work, args=(first, threads), name="modelkms-encrypt")
            for first in range(1, threads)
        ]
        for helper in helpers:
            helper.start()
        try:
            self._work(0, threads)
        finally:
            for helper in helpers:
                helper.join()
        if self._failure is not None:
            raise self._failure

    def _work(self, first: int, step: int) -> None:
        """Chunks first, first + step, …"""
        try:
            plain = bytearray(self._segments_each * self._body.capacity)
            encrypted = bytearray(self._segments_each * self._body.segment_length)
            for chunk in range(first, self._chunks, step):
                self._chunk(chunk, memoryview(plain), memoryview(encrypted))
        except _Stopped:
            pass
        except BaseException as error:
            self._stop(error)  # raised by `run`, once all threads have ended

    def _chunk(self, chunk: int, plain: memoryview, encrypted: memoryview) -> None:
        positions = range(
            chunk * self._segments_each,
            min((chunk + 1) * self._segments_each, self._body.segments),
        )
        plain_start = self._body.plain(positions[0]).start
        encrypted_start = self._body.encrypted(positions[0]).start
        plain = plain[: self._body.plain(positions[-1]).stop - plain_start]
        encrypted = encrypted[: self._body.encrypted(positions[-1]).stop - encrypted_start]

        with self._reading.turn(chunk):
            # The size was looked at before: a source that gives less has changed, and says so.
            filled = self._reader.fill(plain)
            assert filled == len(plain)
        for position in positions:
            at, to = self._body.plain(position), self._body.encrypted(position)
            self._encryptor.encrypt_into(
                position,
                self._body.is_last(position),
                plain[at.start - plain_start : at.stop - plain_start],
                encrypted[to.start - encrypted_start : to.stop - encrypted_start],
            )
        with self._writing.turn(chunk):
            _write_all(self._sink, encrypted)
        with self._hashing.turn(chunk):
            self.pin.update(encrypted)
            if self._progress is not None:
                self._progress(plain_start + len(plain), self._body.plain_bytes)

    def _stop(self, error: BaseException) -> None:
        """The first failure counts; whoever waits for a turn that never comes is woken."""
        if self._failure is None or not isinstance(error, Exception):
            self._failure = error
        for turns in (self._reading, self._writing, self._hashing):
            turns.stop()


class _Stopped(Exception):
    """Another thread failed."""


class _Turns:
    """Lets chunk after chunk through, in order."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = 0
        self._stopped = False

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until all before `number` had their turn. A turn that fails is the last."""
        with self._condition:
            self._condition.wait_for(lambda: self._next == number or self._stopped)
            if self._stopped:
                raise _Stopped
        yield
        with self._condition:
            self._next = number + 1
            self._condition.notify_all()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify_all()


def _write_all(sink: Sink, data: memoryview) -> None:
    """All of it: a raw file may take less at once."""
    while data:
        taken = sink.write(data)
        data = data[len(data) if taken is None else taken :]
