"""The plaintext of an artifact, at any offset: FLOE over a stored ciphertext.

Nothing is handed out before it is verified. Small reads go through a cache of segments, which a
sequential reader has filled ahead; large ones are decrypted by two threads straight into memory
that nobody else sees until all of it verified.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from modelkms.artifact.buffers import FreshBytes, FreshMemory, copy, wipe
from modelkms.artifact.floe import Body, Decryptor
from modelkms.artifact.parallel import CHUNK_BYTES, THREADS, ProgressBytes, Work
from modelkms.artifact.segment_cache import SegmentCache
from modelkms.artifact.sources import ArtifactSource, read_all_into

_PARALLEL_BYTES = 4 << 20
"""Below this a second thread costs more than it brings."""
_PART_BYTES = 4 << 20
"""Of fresh memory a thread fills so much on end: where two of them meet on one page of 2 MiB, both
clear it."""
_CACHE_BYTES = 4 << 20
_MIN_CACHED_SEGMENTS = 2
_THREAD_NAME = "modelkms-decrypt"


class Payload:
    """The decrypted payload. Safe to use from several threads.

    Attributes:
        length_bytes: of the plaintext; authenticated.
    """

    def __init__(
        self, source: ArtifactSource, segments_offset: int, decryptor: Decryptor, body: Body
    ) -> None:
        """
        Raises:
            ArtifactCorrupt: the last segment does not authenticate.
        """
        self._source = source
        self._segments_offset = segments_offset
        self._decryptor = decryptor
        self._body = body
        self.length_bytes = body.plain_bytes
        self._cache = SegmentCache(
            self._load,
            min(body.capacity, body.plain_bytes),
            max(_MIN_CACHED_SEGMENTS, _CACHE_BYTES // body.segment_length),
        )
        self._scratch: list[memoryview] = []
        self._ahead_lock = threading.Lock()
        self._ahead: ThreadPoolExecutor | None = None
        self._forgotten = False
        # artifact-v1 §7, step 5: the reader MUST authenticate the last segment before any other.
        # Its position and length authenticate the length of the whole; without that FLOE does not
        # commit, and a truncated artifact looks like one that is read past its end.
        self._cache.copy(body.last, 0, memoryview(bytearray()))

    def read(self, offset: int, length: int) -> bytes:
        """Plaintext from `offset`, fewer bytes only at the end.

        Raises:
            ArtifactCorrupt: a segment that is needed does not authenticate; nothing is given out.
            OSError: the ciphertext cannot be read.
        """
        result = FreshBytes(max(0, min(length, self.length_bytes - offset)))
        self._fill_or_wipe(offset, result)
        return result.take()

    def memory(self, offset: int, length: int) -> memoryview:
        """As `read`, into writable memory of its own mapping, aligned for huge pages."""
        result = FreshMemory(max(0, min(length, self.length_bytes - offset)))
        self._fill_or_wipe(offset, result)
        return result.take()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Copy verified plaintext into `buffer`; how many bytes, fewer than it holds only at the
        end. The caller's buffer never holds anything unverified.

        Raises: as `read`.
        """
        length = max(0, min(len(buffer), self.length_bytes - offset))
        if length >= _PARALLEL_BYTES:

            def give(at: int, plain: memoryview) -> None:
                copy(plain, buffer[at : at + len(plain)])

            self.chunks(offset, length, give)
            return length
        done = 0
        while done < length:
            position, start = divmod(offset + done, self._body.capacity)
            wanted = buffer[done : min(length, done + self._body.capacity - start)]
            self._cache.copy(position, start, wanted)
            done += len(wanted)
        return done

    def chunks(self, offset: int, length: int, give: Callable[[int, memoryview], None]) -> None:
        """Verified plaintext in parts of about 1 MiB, in any order, from two threads.

        Args:
            give: gets (offset within the range, plaintext); the memory is reused afterwards.

        Raises: as `read`, and what `give` raises.
        """
        threads = THREADS if length >= _PARALLEL_BYTES else 1
        work = self._work(offset, length, threads)

        def run() -> None:
            scratch = _Scratch.of(self._body, self._segments_each, self._segments_each)
            try:
                for positions in self._taken_from(work):
                    plain = self._decrypt(positions, scratch)
                    start = self._body.plain(positions[0]).start
                    inner = slice(max(offset - start, 0), min(offset + length - start, len(plain)))
                    give(start + inner.start - offset, plain[inner])
            finally:
                wipe(scratch.plain)

        work.run(run, threads, _THREAD_NAME)

    def verify(self, progress: ProgressBytes | None = None) -> None:
        """Authenticate every segment.

        Args:
            progress: called from worker threads, never from two at once.

        Raises: as `read`; of several bad segments the first.
        """
        lock, done_bytes = threading.Lock(), 0

        def tell(_at: int, plain: memoryview) -> None:
            nonlocal done_bytes
            if progress is not None:
                with lock:
                    done_bytes += len(plain)
                    progress(done_bytes, self.length_bytes)

        self.chunks(0, self.length_bytes, tell)

    def read_ahead(self, offset: int, length: int) -> None:
        """Have segments decrypted that will be read soon, by a thread of its own. Whoever reads
        them meets the errors."""
        length = min(length, self.length_bytes - offset)
        if length <= 0:
            return
        positions = self._positions(offset, length)
        with self._ahead_lock:
            if self._forgotten:
                return
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, "modelkms-read-ahead")
            for start in range(0, len(positions), self._segments_each):
                part = self._cache.claim(positions[start : start + self._segments_each])
                if part:
                    self._ahead.submit(self._cache.fetch, part)

    def forget(self) -> None:
        """Wipe cached plaintext, and read no more ahead. Nobody may be reading."""
        with self._ahead_lock:
            self._forgotten = True
            if self._ahead is not None:
                self._ahead.shutdown(wait=True, cancel_futures=True)
        self._cache.forget()

    # --- large reads ----------------------------------------------------------------------------

    def _fill_or_wipe(self, offset: int, result: FreshBytes | FreshMemory) -> None:
        try:
            if len(result.view) >= _PARALLEL_BYTES:
                self._fill(offset, result.view, THREADS)
            else:
                self.read_into(offset, result.view)
        except BaseException:
            result.wipe()
            raise

    def _fill(self, offset: int, view: memoryview, threads: int) -> None:
        """Decrypt into `view`, which is private until this returns. It holds unverified plaintext
        after a failure: the caller wipes it."""
        work = self._work(offset, len(view), threads)

        def run() -> None:
            scratch = _Scratch.of(self._body, self._segments_each, 1)
            try:
                for positions in self._taken_from(work):
                    self._fill_chunk(positions, offset, view, scratch)
            finally:
                wipe(scratch.plain)

        work.run(run, threads, _THREAD_NAME)

    def _fill_chunk(
        self, positions: range, offset: int, view: memoryview, scratch: _Scratch
    ) -> None:
        end = offset + len(view)
        encrypted = self._encrypted(positions, scratch)
        for position in positions:
            at = self._body.plain(position)
            segment = encrypted[self._within(position, positions)]
            if offset <= at.start and at.stop <= end:
                self._decrypt_one(position, segment, view[at.start - offset : at.stop - offset])
            else:  # it reaches out of the range
                out = scratch.plain[: at.stop - at.start]
                self._decrypt_one(position, segment, out)
                start, stop = max(at.start, offset), min(at.stop, end)
                view[start - offset : stop - offset] = out[start - at.start : stop - at.start]

    def _work(self, offset: int, length: int, threads: int) -> Work:
        part = min(_PART_BYTES, length // (2 * threads)) // self._body.segment_length
        return Work(self._positions(offset, length), max(self._segments_each, part))

    def _taken_from(self, work: Work) -> Iterator[range]:
        """Chunks of what a thread takes. Whoever took something goes on to its end, though another
        failed: its own failure may be the first."""
        while (taken := work.take()) is not None:
            for first in range(0, len(taken), self._segments_each):
                yield taken[first : first + self._segments_each]

    @property
    def _segments_each(self) -> int:
        return max(1, CHUNK_BYTES // self._body.segment_length)

    def _positions(self, offset: int, length: int) -> range:
        """Of the segments that hold a range; for none at all the (empty) one there is."""
        first = min(offset // self._body.capacity, self._body.last)
        return range(first, max(first, (offset + length - 1) // self._body.capacity) + 1)

    def _within(self, position: int, positions: range) -> slice:
        """Where a segment lies in the ciphertext of `positions`."""
        at, start = self._body.encrypted(position), self._body.encrypted(positions[0]).start
        return slice(at.start - start, at.stop - start)

    def _encrypted(self, positions: range, scratch: _Scratch) -> memoryview:
        start = self._body.encrypted(positions[0]).start
        encrypted = scratch.encrypted[: self._body.encrypted(positions[-1]).stop - start]
        read_all_into(self._source, self._segments_offset + start, encrypted)
        return encrypted

    def _decrypt(self, positions: range, scratch: _Scratch) -> memoryview:
        """All of these segments, verified, in scratch memory."""
        encrypted = self._encrypted(positions, scratch)
        start = self._body.plain(positions[0]).start
        for position in positions:
            at = self._body.plain(position)
            out = scratch.plain[at.start - start : at.stop - start]
            self._decrypt_one(position, encrypted[self._within(position, positions)], out)
        return scratch.plain[: self._body.plain(positions[-1]).stop - start]

    def _decrypt_one(self, position: int, segment: memoryview, out: memoryview) -> None:
        self._decryptor.decrypt_into(position, self._body.is_last(position), segment, out)

    # --- small reads ----------------------------------------------------------------------------

    def _load(self, positions: range, buffers: list[memoryview]) -> None:
        """Decrypt segments, one into each buffer, with one read of the source."""
        with self._ciphertext() as scratch:
            start = self._body.encrypted(positions[0]).start
            encrypted = scratch[: self._body.encrypted(positions[-1]).stop - start]
            read_all_into(self._source, self._segments_offset + start, encrypted)
            for position, buffer in zip(positions, buffers, strict=True):
                at = self._body.plain(position)
                out = buffer[: at.stop - at.start]
                self._decrypt_one(position, encrypted[self._within(position, positions)], out)

    @contextmanager
    def _ciphertext(self) -> Iterator[memoryview]:
        """Memory for ciphertext that nobody else uses."""
        try:
            scratch = self._scratch.pop()
        except IndexError:
            needed = min(self._segments_each * self._body.segment_length, self._body.body_bytes)
            scratch = memoryview(bytearray(needed))
        yield scratch
        if len(self._scratch) < THREADS:
            self._scratch.append(scratch)


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Private memory of one thread: for ciphertext, and for what it decrypts to."""

    encrypted: memoryview
    plain: memoryview

    @classmethod
    def of(cls, body: Body, encrypted_segments: int, plain_segments: int) -> _Scratch:
        encrypted = min(encrypted_segments * body.segment_length, body.body_bytes)
        plain = min(plain_segments * body.capacity, body.plain_bytes)
        return cls(memoryview(bytearray(encrypted)), memoryview(bytearray(plain)))
