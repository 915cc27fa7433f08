"""Signals of `modelkms run`: what a supervisor or a terminal sends, handed on to the command."""

from __future__ import annotations

import enum
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

RELAYED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# Among threads of ours only: wakes the main thread, whatever it waits for, and ends the relay's
# wait. Ignored by default, so that a stray one does nothing.
_WAKE = signal.SIGURG


class Interrupted(BaseException):
    """A signal came before the command was started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Phase(enum.Enum):
    BEFORE = enum.auto()
    RUNNING = enum.auto()
    AFTER = enum.auto()


class SignalRelay:
    """Takes the signals of this process, in a thread of its own, and gives each to who it is for.

    Before the command runs: the main thread is interrupted (`Interrupted`), so that whatever it
    has opened is closed. While it runs: the command gets it. Afterwards: nothing, so that the
    clean-up is completed.

    The signals are blocked in every thread (enter this before any is started: threads inherit the
    mask) and taken synchronously. That tells, unlike a handler, who sent one: Ctrl-C in a terminal
    goes to the whole foreground group, the command included, and must not reach it twice.
    """

    def __init__(self) -> None:
        # What was ignored when we were started (nohup, a background job) stays ignored, for the
        # command too.
        self._signals = {number for number in RELAYED if signal.getsignal(number) != signal.SIG_IGN}
        self._mask: set[signal.Signals] = set()
        self._handler_before: object = None
        self._lock = threading.Lock()
        self._phase = _Phase.BEFORE
        self._interrupted_by: int | None = None
        self._process: _Process | None = None
        self._thread = threading.Thread(target=self._relay, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._handler_before = signal.signal(_WAKE, self._interrupt)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, _WAKE})
        self._mask = {signal.Signals(number) for number in blocked}
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_WAKE})  # here; the relay waits for it
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        assert self._thread.ident is not None  # started by __enter__
        signal.pthread_kill(self._thread.ident, _WAKE)
        self._thread.join()
        for number in self._signals:  # those that came after the command ended are dropped
            while number in signal.sigpending():
                signal.sigwait({number})
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.signal(_WAKE, self._handler_before)  # type: ignore[arg-type]  # what it gave

    def start(self, spawn: Callable[[set[signal.Signals]], int]) -> int:
        """Start the command by `spawn(signal mask it shall have)`, which gives its pid.

        No signal gets lost in between: the relay waits until the pid is known.

        Raises:
            Interrupted: one came before.
        """
        with self._lock:
            if self._interrupted_by is not None:
                raise Interrupted(self._interrupted_by)
            self._phase = _Phase.RUNNING  # from here on nothing interrupts us
            pid = spawn(self._mask)
            self._process = _Process(pid)
        return pid

    def send(self, number: signal.Signals) -> None:
        """A signal of our own to the command, if it runs."""
        with self._lock:
            if self._process is not None:
                self._process.send(number)

    def finish(self) -> None:
        """The command has ended, or will not be started: signals do nothing any more."""
        with self._lock:
            self._phase = _Phase.AFTER
            if self._process is not None:
                self._process.close()
                self._process = None

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """In the main thread, at the relay's bidding."""
        if self._phase is _Phase.BEFORE and self._interrupted_by is not None:
            raise Interrupted(self._interrupted_by)

    def _relay(self) -> None:
        waited = {*self._signals, _WAKE}
        while True:
            number, by_process = _next_signal(waited)
            with self._lock:
                if self._phase is _Phase.AFTER:
                    return
                if number == _WAKE:
                    continue
                if self._phase is _Phase.BEFORE:
                    self._interrupted_by = number
                    signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)
                elif self._process is not None and by_process:
                    self._process.send(number)


class _Process:
    """The command's process, by a descriptor where there is one: its pid may be given anew."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor = os.pidfd_open(pid) if sys.platform == "linux" else None

    def send(self, number: int) -> None:
        try:
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            else:
                os.kill(self._pid, number)
        except ProcessLookupError:
            return  # it has ended; whoever waits for it is about to know

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _next_signal(waited: set[signal.Signals]) -> tuple[signal.Signals, bool]:
    """The next one, and whether a process sent it (siginfo's si_code ≤ 0), not the terminal."""
    if sys.platform == "linux":
        told = signal.sigwaitinfo(waited)
        return signal.Signals(told.si_signo), told.si_code <= 0
    # Elsewhere the sender is not told: take a terminal's signals as sent to the whole group.
    number = signal.Signals(signal.sigwait(waited))
    return number, not (number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground())


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
