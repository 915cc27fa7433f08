"""The plaintext of an artifact, at any offset: FLOE over a stored ciphertext.

Nothing is handed out before it is verified. Small reads go through a cache of segments; large ones
are decrypted by two threads straight into memory that nobody else sees until all of it verified.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from modelkms.artifact.buffers import FreshBytes, FreshMemory, wipe
from modelkms.artifact.floe import Body, Decryptor
from modelkms.artifact.parallel import CHUNK_BYTES, THREADS, Work
from modelkms.artifact.sources import ArtifactSource, read_all_into

_PARALLEL_BYTES = 4 << 20
"""Below this a second thread costs more than it brings."""
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
        self._cache = _SegmentCache(max(_MIN_CACHED_SEGMENTS, _CACHE_BYTES // body.segment_length))
        self.length_bytes = body.plain_bytes
        # artifact-v1 §7, step 5: the reader MUST authenticate the last segment before any other.
        # Its position and length authenticate the length of the whole; without that FLOE does not
        # commit, and a truncated artifact looks like one that is read past its end.
        self._load(body.last, 0, memoryview(bytearray()))

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
        done = 0
        while done < length:
            position, start = divmod(offset + done, self._body.capacity)
            wanted = buffer[done : min(length, done + self._body.capacity - start)]
            if not self._cache.copy(position, start, wanted):
                self._load(position, start, wanted)
            done += len(wanted)
        return done

    def chunks(self, offset: int, length: int, give: Callable[[int, memoryview], None]) -> None:
        """Verified plaintext in parts of about 1 MiB, in any order, from two threads.

        Args:
            give: gets (offset within the range, plaintext); the memory is reused afterwards.

        Raises: as `read`, and what `give` raises.
        """
        work = Work(self._positions(offset, length), self._segments_each)

        def run() -> None:
            scratch = _Scratch.of(self._body, self._segments_each, self._segments_each)
            try:
                while (positions := work.take()) is not None:
                    plain = self._decrypt(positions, scratch)
                    start = self._body.plain(positions[0]).start
                    inner = slice(max(offset - start, 0), min(offset + length - start, len(plain)))
                    give(start + inner.start - offset, plain[inner])
            finally:
                wipe(scratch.plain)

        work.run(run, THREADS if length >= _PARALLEL_BYTES else 1, _THREAD_NAME)

    def verify(self) -> None:
        """Authenticate every segment.

        Raises: as `read`.
        """
        self.chunks(0, self.length_bytes, lambda _at, _plain: None)

    def forget(self) -> None:
        """Wipe cached plaintext."""
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
        end = offset + len(view)
        work = Work(self._positions(offset, len(view)), self._segments_each)

        def run() -> None:
            scratch = _Scratch.of(self._body, self._segments_each, 1)
            try:
                while (positions := work.take()) is not None:
                    encrypted = self._encrypted(positions, scratch)
                    for position in positions:
                        at = self._body.plain(position)
                        segment = encrypted[self._within(position, positions)]
                        if offset <= at.start and at.stop <= end:
                            out = view[at.start - offset : at.stop - offset]
                            self._decrypt_one(position, segment, out)
                        else:  # it reaches out of the range
                            out = scratch.plain[: at.stop - at.start]
                            self._decrypt_one(position, segment, out)
                            start, stop = max(at.start, offset), min(at.stop, end)
                            view[start - offset : stop - offset] = out[
                                start - at.start : stop - at.start
                            ]
            finally:
                wipe(scratch.plain)

        work.run(run, threads, _THREAD_NAME)

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

    def _load(self, position: int, start: int, wanted: memoryview) -> None:
        """Decrypt one segment, copy what is wanted of it, keep it in the cache. Two threads may do
        so with the same segment at once; one result stays."""
        scratch = self._cache.scratch() or _Scratch.of(self._body, 1, 1)
        plain = self._decrypt(range(position, position + 1), scratch)
        wanted[:] = plain[start : start + len(wanted)]
        self._cache.put(position, scratch)


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


class _SegmentCache:
    """The last few segments that were read, verified, each in the scratch memory it was decrypted
    in. What falls out is used again: fresh pages cost more than decrypting does."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._size = size
        self._segments: OrderedDict[int, _Scratch] = OrderedDict()
        self._spare: list[_Scratch] = []

    def copy(self, position: int, start: int, wanted: memoryview) -> bool:
        """Copy out of a segment, if it is here."""
        with self._lock:
            found = self._segments.get(position)
            if found is None:
                return False
            self._segments.move_to_end(position)
            wanted[:] = found.plain[start : start + len(wanted)]
            return True

    def scratch(self) -> _Scratch | None:
        """Memory for one segment that nobody uses; whatever is in it gets overwritten."""
        with self._lock:
            return self._spare.pop() if self._spare else None

    def put(self, position: int, segment: _Scratch) -> None:
        with self._lock:
            replaced = self._segments.pop(position, None)
            self._segments[position] = segment
            if replaced is None and len(self._segments) > self._size:
                replaced = self._segments.popitem(last=False)[1]
            if replaced is not None and len(self._spare) < THREADS:
                self._spare.append(replaced)

    def forget(self) -> None:
        """Wipe and drop all that is here."""
        with self._lock:
            for scratch in (*self._segments.values(), *self._spare):
                wipe(scratch.plain)
            self._segments.clear()
            self._spare.clear()
