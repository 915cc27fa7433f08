"""Streams whose client does not move are ended: each holds a thread of the few there are (F30)."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from kms_service.telemetry.logging import get_logger

_log = get_logger(__name__)

T = TypeVar("T")

STALLED_AFTER_S = 60.0
"""Of waiting for the client; a chunk of 1 MiB passes meanwhile at 18 KiB a second."""
_LOOKS = 4
"""In that time."""


class WatchedStream:
    """One call, and since when it waits for its client. What the service itself takes its time for
    does not count."""

    __slots__ = ("context", "waits_since_s")

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.waits_since_s: float | None = None

    def taken(self, requests: Iterator[T]) -> Iterator[T]:
        """`requests`, as the client sends them."""
        while True:
            self.waits_since_s = time.monotonic()
            try:
                request = next(requests)
            except StopIteration:
                return
            finally:
                self.waits_since_s = None
            yield request

    def given(self, answers: Iterator[T]) -> Iterator[T]:
        """`answers`, as the client takes them; closed when nobody takes them any more."""
        try:
            for answer in answers:
                self.waits_since_s = time.monotonic()
                yield answer
                self.waits_since_s = None
        finally:
            if isinstance(answers, Generator):
                answers.close()


class StallWatch:
    """One thread looks after all streams, while there are any. Safe to use from many threads."""

    def __init__(self) -> None:
        self._streams: set[WatchedStream] = set()
        self._lock = threading.Lock()
        self._watching = False

    @contextmanager
    def stream(self, context: grpc.ServicerContext) -> Iterator[WatchedStream]:
        """Of this call, to the end of the block; cancelled when its client does not move."""
        stream = WatchedStream(context)
        with self._lock:
            self._streams.add(stream)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="rpc-stalls", daemon=True).start()
        try:
            yield stream
        finally:
            with self._lock:
                self._streams.discard(stream)

    def _watch(self) -> None:
        while True:
            with self._lock:
                if not self._streams:
                    self._watching = False
                    return
                streams = list(self._streams)
            before_s = time.monotonic() - STALLED_AFTER_S
            for stream in streams:
                since_s = stream.waits_since_s
                if since_s is not None and since_s < before_s:
                    _log.info("stream_stalled", peer=stream.context.peer())
                    stream.context.cancel()
            time.sleep(STALLED_AFTER_S / _LOOKS)
