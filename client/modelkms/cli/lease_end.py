"""What `modelkms run` does to its command when the lease ends under it: --on-revoke."""

from __future__ import annotations

import signal
import threading
from enum import StrEnum

from modelkms.cli.output import moment, note
from modelkms.cli.signals import SignalRelay
from modelkms.types import LeaseEvent


class OnRevoke(StrEnum):
    TERM = "term"
    """SIGTERM; SIGKILL once the grace is over."""
    KILL = "kill"
    KEEP = "keep"
    """Told on stderr only; the model stays until the command ends."""


class LeaseEnd:
    """Told of lease events by the SDK, in its threads.

    Args:
        relay: sends signals to the command, while it runs.
    """

    def __init__(self, on_revoke: OnRevoke, grace_s: float, relay: SignalRelay) -> None:
        self._on_revoke = on_revoke
        self._grace_s = grace_s
        self._relay = relay
        self._lock = threading.Lock()
        self._started = False
        self._ended = False
        self._timer: threading.Timer | None = None

    def __call__(self, event: LeaseEvent) -> None:
        if event.kind == "offline":
            note(f"warning: the service is away; the model stays open until {moment(event.until)}")
        if event.kind != "ended":
            return
        note(f"warning: {event.error}{self._consequence()}")
        with self._lock:
            self._ended = True
            self._act()

    def command_started(self) -> None:
        """An end that came before is acted upon now."""
        with self._lock:
            self._started = True
            self._act()

    def cancel(self) -> None:
        """The command has ended."""
        with self._lock:
            self._started = False
            if self._timer is not None:
                self._timer.cancel()

    def _act(self) -> None:
        if not (self._started and self._ended) or self._on_revoke is OnRevoke.KEEP:
            return
        if self._on_revoke is OnRevoke.KILL:
            self._relay.send(signal.SIGKILL)
            return
        self._relay.send(signal.SIGTERM)
        self._timer = threading.Timer(self._grace_s, self._relay.send, [signal.SIGKILL])
        self._timer.daemon = True
        self._timer.start()

    def _consequence(self) -> str:
        match self._on_revoke:
            case OnRevoke.TERM:
                return f"; the command is ended within {self._grace_s:g} s (--on-revoke term)"
            case OnRevoke.KILL:
                return "; the command is killed (--on-revoke kill)"
            case OnRevoke.KEEP:
                return "; the command goes on (--on-revoke keep)"
