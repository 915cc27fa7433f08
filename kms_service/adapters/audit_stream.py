"""A second copy of the audit log, which may lag: lines to a stream, by a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from kms_service.telemetry.logging import get_logger

_log = get_logger(__name__)
CAPACITY = 10_000
_CLOSE_WAIT_S = 2.0
_BATCH = 500
"""A batch in OTLP stays far below the 4 MiB that collectors take."""


class ByteStream(Protocol):
    def write(self, data: bytes, /) -> object: ...
    def flush(self) -> object: ...


class AuditStream:
    """Writes lines that are durable elsewhere. Whoever tells it of them never waits.

    Args:
        stream: given whole lines, at most 500 at once; what it does not take is dropped, and the
            next are tried.
        dropped: called with how many lines were left out.
        capacity: lines that may wait.
    """

    def __init__(
        self, stream: ByteStream, dropped: Callable[[int], object], capacity: int = CAPACITY
    ) -> None:
        self._stream = stream
        self._dropped = dropped
        self._capacity = capacity
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="audit-stream", daemon=True)
        self._thread.start()

    def tell(self, lines: Sequence[bytes]) -> None:
        with self._changed:
            room = max(0, self._capacity - len(self._lines))
            self._lines.extend(lines[:room])
            self._changed.notify()
        if len(lines) > room:
            self._dropped(len(lines) - room)

    def close(self) -> None:
        """Write what waits; a stream that takes nothing is given up after two seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_WAIT_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closing:
                    self._changed.wait()
                lines = [self._lines.popleft() for _ in range(min(_BATCH, len(self._lines)))]
            if not lines:
                return
            try:
                self._stream.write(b"".join(lines))
                self._stream.flush()
                self._failing = False
            except (OSError, ValueError) as error:
                self._dropped(len(lines))
                if not self._failing:
                    _log.warning("audit_stream_failed", error=type(error).__name__)
                self._failing = True
