"""The segments of an artifact that were read last, decrypted: bounded, shared by all readers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from modelkms.artifact.buffers import wipe

_MAX_SPARE = 4

Load = Callable[[range, list[memoryview]], None]
"""Decrypt these segments, one into each buffer. Raises if one does not verify."""


class SegmentCache:
    """Verified plaintext by segment. Safe to use from several threads; who wants a segment that
    another thread is decrypting waits for it.

    What falls out lends its memory to what comes: fresh pages cost more than decrypting does.
    """

    def __init__(self, load: Load, segment_bytes: int, max_segments: int) -> None:
        """
        Args:
            segment_bytes: plaintext bytes of a segment; the last one may have fewer.
            max_segments: so many are kept. A caller's own come on top while they are decrypted.
        """
        self._load = load
        self._segment_bytes = segment_bytes
        self._max_segments = max_segments
        self._changed = threading.Condition()
        self._segments: OrderedDict[int, memoryview] = OrderedDict()
        self._loading: set[int] = set()
        self._spare: list[memoryview] = []

    def copy(self, position: int, start: int, wanted: memoryview) -> None:
        """Fill `wanted` from within a segment, which is decrypted if need be.

        Raises: what `load` raises; `wanted` is as it was then.
        """
        while True:  # until it is there: others may read so much that it falls out again
            with self._changed:
                while position in self._loading:
                    self._changed.wait()  # if that fails, we try ourselves, and get the error
                if self._copied(position, start, wanted):
                    return
                self._loading.add(position)
            self.fetch(range(position, position + 1))

    def claim(self, positions: range) -> range:
        """Of `positions` the first few that are not here, in a row, for the caller to `fetch`: from
        now on readers wait for that. At most half as many as are kept."""
        with self._changed:
            here = self._segments.keys() | self._loading
            first = next((at for at in positions if at not in here), positions.stop)
            stop = next((at for at in range(first, positions.stop) if at in here), positions.stop)
            claimed = range(first, min(stop, first + self._max_segments // 2))
            self._loading.update(claimed)
            return claimed

    def fetch(self, claimed: range) -> None:
        """Decrypt segments that were claimed, in one go.

        Raises: what `load` raises; whoever waits for one of them tries by itself then.
        """
        buffers: list[memoryview] = []
        try:
            buffers += [self._buffer() for _ in claimed]
            self._load(claimed, buffers)
        except BaseException:
            with self._changed:
                for buffer in buffers:  # also those that did verify: nobody asked for them
                    wipe(buffer)
                self._loading.difference_update(claimed)
                self._changed.notify_all()
            raise
        with self._changed:
            self._segments.update(zip(claimed, buffers, strict=True))
            while len(self._segments) > self._max_segments:
                _, dropped = self._segments.popitem(last=False)
                if len(self._spare) < _MAX_SPARE:
                    self._spare.append(dropped)
                else:
                    wipe(dropped)
            self._loading.difference_update(claimed)
            self._changed.notify_all()

    def forget(self) -> None:
        """Wipe and drop all that is here. Nobody may be reading."""
        with self._changed:
            for plain in (*self._segments.values(), *self._spare):
                wipe(plain)
            self._segments.clear()
            self._spare.clear()

    def _copied(self, position: int, start: int, wanted: memoryview) -> bool:
        """Copy out of a segment if it is here. We hold the lock: it cannot fall out meanwhile."""
        found = self._segments.get(position)
        if found is None:
            return False
        self._segments.move_to_end(position)
        wanted[:] = found[start : start + len(wanted)]
        return True

    def _buffer(self) -> memoryview:
        """Memory for one segment that nobody uses; whatever is in it gets overwritten."""
        with self._changed:
            if self._spare:
                return self._spare.pop()
        return memoryview(bytearray(self._segment_bytes))
