"""A process on a terminal of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

from tests.support.planted_secrets import written

# The session leader makes the terminal on its stdin the controlling one, then becomes the command.
_ATTACH = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv"


class Terminal(SimpleNamespace):
    """Attributes: process; told: all that was shown so far."""

    process: subprocess.Popen[bytes]
    descriptor: int
    told: str

    def type(self, text: bytes) -> None:
        os.write(self.descriptor, text)

    def read_until(self, text: str) -> None:
        while text not in self.told and self._read():
            pass
        assert text in self.told

    def finish(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(30)

    def _read(self) -> bool:
        try:
            data = os.read(self.descriptor, 4096)
        except OSError:  # EIO: nobody has the other end open any more
            return False
        self.told += data.decode()
        return bool(data)


@contextlib.contextmanager
def on_terminal(command: Sequence[str]) -> Iterator[Terminal]:
    """`command` (its first word an absolute path) with a terminal as stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", f"{_ATTACH}(sys.argv[1], sys.argv[1:])", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    try:
        yield (terminal := Terminal(process=process, descriptor=ours, told=""))
        written(f"terminal of {command}", terminal.told)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
