"""Child processes that never outlive us."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class ChildFailed(Exception):
    """A child process ended, or did not get ready in time; the message has its log's tail."""


class ChildProcess:
    """One child with its output in a log file. Linux kills it when this process dies.

    The kernel sends the signal when the *thread* that started the child ends, so start children
    from the main thread (prctl(2), PR_SET_PDEATHSIG).
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_file: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log_file = log_file
        parent = os.getpid()
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own argv
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment) if environment is not None else None,
                # A session of its own: Ctrl-C in the terminal reaches the stack, which stops
                # its children in order.
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return once `ready()`.

        Raises:
            ChildFailed: the child ended first, or `timeout_s` is over.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running():
                raise ChildFailed(f"{self.name} ended at start{self._tail()}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"{self.name} was not ready in {timeout_s:.0f} s{self._tail()}")
            time.sleep(0.02)

    def wait_until_done(self, timeout_s: float) -> None:
        """Return once it ended with exit code 0.

        Raises:
            ChildFailed: it failed, or `timeout_s` is over.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop(0)
            raise ChildFailed(f"{self.name} took over {timeout_s:.0f} s{self._tail()}") from None
        if code != 0:
            raise ChildFailed(f"{self.name} failed with exit code {code}{self._tail()}")

    def wait_until_ended(self) -> None:
        """Wait for its end, which nobody asked for.

        Raises:
            ChildFailed: always, once it ended.
        """
        code = self._process.wait()
        raise ChildFailed(f"{self.name} ended with exit code {code}{self._tail()}")

    def stop(self, grace_s: float = 10.0) -> int:
        """SIGTERM, then SIGKILL after `grace_s`; the exit code."""
        if self.running():
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.wait()

    def _tail(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()[-8:]
        return f"; its log {self._log_file} ends:\n  " + "\n  ".join(lines)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the prctl took hold
        os.kill(os.getpid(), signal.SIGKILL)
