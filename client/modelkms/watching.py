"""Hearing of leases that the service ends: by a stream where it has a watch port, else by asking.

Nothing depends on it but how soon: whoever hears nothing is told at the next renewal, and at the
latest by the end of the lease.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable
from itertools import islice

import grpc
from modelkms_api.v1 import watch_service_pb2
from modelkms_api.v1.watch_service_pb2_grpc import WatchServiceStub

from modelkms.errors import ModelKmsError
from modelkms.keeper import LeaseKeeper

_log = logging.getLogger("modelkms")

_MAX_LEASES = 1000
"""Of one stream or question; whatever is beyond is heard of at its renewal."""
_FIRST_MESSAGE_S = 10.0
_MISSED_HEARTBEATS = 3
_ASK_EVERY_S = 60.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_GATHER_S = 0.1
"""Models that are opened together are watched together."""

OpenWatch = Callable[[], "grpc.Channel | None"]
"""A fresh channel to the watch port; None where there is none to go to."""
Ask = Callable[[list[str]], Iterable[str]]
"""CheckLeases: of these, those that have ended."""


class LeaseWatcher:
    """One thread that watches the leases of a keeper, once there are any."""

    def __init__(self, open_watch: OpenWatch, ask: Ask) -> None:
        self._open_watch = open_watch
        self._ask = ask
        self._keeper: LeaseKeeper | None = None
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._call: grpc.Call | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, keeper: LeaseKeeper) -> None:
        """Begin, or begin anew: the leases have changed."""
        with self._lock:
            if self._closed:
                return
            self._keeper = keeper
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, args=(keeper,), name="modelkms-watch", daemon=True
                )
                self._thread.start()
            self._changed.set()
            if self._call is not None:
                self._call.cancel()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._changed.set()
            if self._call is not None:
                self._call.cancel()

    def _run(self, keeper: LeaseKeeper) -> None:
        failures = 0
        while not self._closed:
            self._changed.wait(_GATHER_S)
            self._changed.clear()
            if self._closed:  # what was cleared may have been the word to end
                return
            names = list(islice(keeper.leases(), _MAX_LEASES))
            if not names:
                self._changed.wait(_ASK_EVERY_S)
                continue
            if self._stream(keeper, names):
                failures = 0  # it worked until it ended: open the next one at once
                continue
            if self._closed:
                return
            self._look(keeper, names)
            pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(failures, 10), _LONGEST_PAUSE_S)
            failures += 1
            self._changed.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311

    def _stream(self, keeper: LeaseKeeper, names: list[str]) -> bool:
        """Whether there was a first message: then all that had ended was told."""
        channel = self._open_watch()
        if channel is None:
            # Asked for at the pace of those who have nothing better.
            self._changed.wait(_ASK_EVERY_S * random.uniform(0.8, 1.0))  # noqa: S311
            self._look(keeper, names)
            return True
        sequence = 0
        with channel:
            request = watch_service_pb2.WatchLeasesRequest(leases=names)
            call = WatchServiceStub(channel).WatchLeases(request, wait_for_ready=False)
            with self._lock:
                self._call = call
                # A lease that came after `names` was read found no call to cancel.
                if self._closed or self._changed.is_set():
                    call.cancel()
            silence = _Silence(call)
            try:
                for message in call:
                    silence.heard(message.heartbeat_interval.ToTimedelta().total_seconds())
                    if message.sequence != sequence + 1:
                        _log.info("a message of the watch is missing: watching anew")
                        return False
                    sequence = message.sequence
                    _tell(keeper, message.ended)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
                    _log.info("watching leases ended: %s", error.code().name)
            finally:
                silence.over()
                with self._lock:
                    self._call = None
                call.cancel()
        return sequence > 0

    def _look(self, keeper: LeaseKeeper, names: list[str]) -> None:
        """Ask once; an outage is the business of renewals."""
        try:
            _tell(keeper, self._ask(names))
        except ModelKmsError as error:
            _log.debug("leases could not be checked: %s", error.reason)


class _Silence:
    """Cancels a call in which nothing is heard for too long: half-open connections say nothing."""

    def __init__(self, call: grpc.Call) -> None:
        self._call = call
        self._timer = self._start(_FIRST_MESSAGE_S)

    def heard(self, heartbeat_s: float) -> None:
        self._timer.cancel()
        self._timer = self._start(_MISSED_HEARTBEATS * max(heartbeat_s, 0.1))

    def over(self) -> None:
        self._timer.cancel()

    def _start(self, after_s: float) -> threading.Timer:
        timer = threading.Timer(after_s, self._call.cancel)
        timer.daemon = True
        timer.name = "modelkms-watch-silence"
        timer.start()
        return timer


def _tell(keeper: LeaseKeeper, ended: Iterable[str]) -> None:
    leases = keeper.leases()
    for name in ended:
        if (kept := leases.get(name)) is not None:
            kept.lease_revoked(name)
