"""A serving process: from its signals to a clean end (F64)."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

from kms_service.bootstrap import build
from kms_service.config import Config
from kms_service.service import Service
from kms_service.telemetry.logging import get_logger

_log = get_logger(__name__)


def serve_until_signalled(config: Config, *, worker_metrics: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then stop within the configured grace.

    SIGHUP reads the policies again. A second SIGTERM or SIGINT ends the grace at once.

    Args:
        worker_metrics: this is one of several workers on the same port, and serves its metrics on
            this Unix socket.

    Raises:
        ConfigurationError: it cannot be served with this configuration.
        ServiceError: a part cannot be started.
    """
    with received_signals() as signals:
        service = build(config, worker_metrics=worker_metrics)
        # What is there now stays: a full collection need not go through it again and again. A
        # rewrap's thousands of items would bring one about ten times a second, a third of its work.
        gc.collect()
        gc.freeze()
        try:
            service.start()
            _until_told(service, signals)
        finally:
            service.stop(config.server.shutdown_grace_s)


def _until_told(service: Service, signals: SimpleQueue[int]) -> None:
    while (number := signals.get()) == signal.SIGHUP:
        service.reload_policies()
    _log.info("stopping", signal=signal.Signals(number).name)
    # From here on impatience is taken literally.
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.default_int_handler)


@contextmanager
def received_signals() -> Iterator[SimpleQueue[int]]:
    """Signals as they come. A SimpleQueue may be put to from a signal handler."""
    numbers: SimpleQueue[int] = SimpleQueue()

    def remember(number: int, _frame: FrameType | None) -> None:
        numbers.put(number)

    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, remember) for number in watched}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
