"""Reading an artifact by its presigned link: ranges in parallel, all of one state of the object.

The link comes from the service and gives ciphertext only; no credential of ours goes with it. What
comes is trusted no more than anything else a store serves: the caller compares it with the pin.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import urllib3
from modelkms_api.artifact import PIN_PIECE_BYTES
from modelkms_api.object_store import is_this_machine
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from modelkms.artifact.parallel import Work
from modelkms.artifact.pin import ParallelDigest
from modelkms.errors import (
    AnswerInvalid,
    ArtifactCorrupt,
    ArtifactMissing,
    ProfileInvalid,
    StorageUnavailable,
)
from modelkms.folders import start_writing_back
from modelkms.session import ATTEMPTS, Session

_log = logging.getLogger("modelkms")

THREADS = 4
"""Ranges at once, each in a buffer of 8 MiB: a piece of the pin's digest."""
_READ_BYTES = 1 << 20
_CONNECT_S = 5.0
_READ_S = 20.0
"""Without a byte for so long, a connection is given up and its range taken up again."""
_RENEWALS = 2
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class ObjectChanged(Exception):
    """The object is not the one that reading began with."""


class LinkedObject:
    """One stored object, for one download.

    Args:
        url: presigned.
        renew: gives another link when this one has ended.
        what: names the version in messages.
        length_bytes: that the object must have.
        ca_file: PEM bundle trusted beside the system's.

    Raises:
        AnswerInvalid: the link is none that may be used.
        ProfileInvalid: `ca_file` cannot be read.
    """

    def __init__(
        self,
        session: Session,
        url: str,
        renew: Callable[[], str],
        what: str,
        length_bytes: int,
        ca_file: Path | None,
        *,
        threads: int = THREADS,
    ) -> None:
        self._session = session
        self._url = _checked(url)
        self._renew = renew
        self._renewals = 0
        self._what = what
        self._length = length_bytes
        self._threads = threads
        self._pool = _pool(self._url, ca_file, threads)
        self._etag: str | None = None
        self._lock = threading.Lock()

    @property
    def pinned(self) -> bool:
        """Whether the store tells states of the object apart, so that all ranges are of one."""
        return self._etag is not None

    def append_to(
        self,
        file: BinaryIO,
        offset: int,
        digest: ParallelDigest,
        appended: Callable[[int, int], None],
    ) -> None:
        """Read the object from `offset` to its end and append it to `file`, which ends there.

        The file grows in order: whatever interrupts this, what it holds is a beginning of the
        object that can be gone on with. Digests are taken in parallel.

        Args:
            digest: has all before `offset`.
            appended: told the end before and after each piece, in order, by several threads.

        Raises:
            ObjectChanged: it was replaced meanwhile.
            ArtifactCorrupt: it is longer or shorter than it must be.
            ArtifactMissing: it is not there.
            StorageUnavailable: it cannot be read, after a few attempts.
            OSError: the file cannot be written.
        """
        pieces = [
            (max(start, offset), min(start + PIN_PIECE_BYTES, self._length))
            for start in range(offset - offset % PIN_PIECE_BYTES, self._length, PIN_PIECE_BYTES)
        ]
        work = Work(range(len(pieces)))
        turn = _Turn(work)

        def fetch_pieces() -> None:
            buffer = memoryview(bytearray(min(PIN_PIECE_BYTES, self._length - offset)))
            while (taken := work.take()) is not None:
                start, end = pieces[taken[0]]
                part = buffer[: end - start]
                self._fill(part, start, digest, lambda: work.failed)
                with turn.of(taken[0]) as ours:
                    if not ours:
                        return
                    _write_at(file, start, part)
                    appended(start, end)
                start_writing_back(file.fileno(), start, end - start)

        work.run(fetch_pieces, min(self._threads, len(pieces)), "modelkms-download")

    def _fill(
        self,
        buffer: memoryview,
        start: int,
        digest: ParallelDigest,
        stopped: Callable[[], bool],
    ) -> None:
        """Fill `buffer` from `start`, over as many requests as it takes, and add it to `digest`."""
        filled = failures = 0
        while filled < len(buffer) and not stopped():
            before = filled
            try:
                with self._range(start + filled, start + len(buffer)) as answer:
                    read_into = _read_into(answer)
                    while filled < len(buffer) and not stopped():
                        taken = read_into(buffer[filled : filled + _READ_BYTES])
                        if not taken:
                            raise StorageUnavailable("the store ended its answer early")
                        # While the processor's cache has it.
                        digest.add(start + filled, buffer[filled : filled + taken])
                        filled += taken
            except (HTTPError, HTTPException, OSError, StorageUnavailable) as error:
                # Their texts have the link in them: it stays out of messages and logs.
                told = (
                    error
                    if isinstance(error, StorageUnavailable)
                    else StorageUnavailable(f"the store cannot be read ({type(error).__name__})")
                )
                failures = 1 if filled > before else failures + 1
                if failures >= ATTEMPTS or self._renewals > _RENEWALS:
                    raise told from None
                _log.info("a range of %s broke off: %s", self._what, told.message)
                self._session.pause(self._session.pause_s(failures, told))

    @contextmanager
    def _range(self, start: int, end: int) -> Iterator[BaseHTTPResponse]:
        """The answer to a request for a range, checked to be that and of the same object."""
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if self._etag is not None:
            headers["If-Match"] = self._etag
        url = self._url
        answer = self._pool.request(
            "GET",
            url,
            headers=headers,
            preload_content=False,
            redirect=False,
            retries=False,
            decode_content=False,
        )
        whole = False
        try:
            self._check(answer, url, start, end)
            yield answer
            whole = True
        finally:
            # A connection in the middle of an answer can serve no other.
            if not whole:
                answer.close()
            answer.release_conn()

    def _check(self, answer: BaseHTTPResponse, url: str, start: int, end: int) -> None:
        status = answer.status
        if status == 412:
            raise ObjectChanged
        if status == 404:
            raise ArtifactMissing(f"the stored artifact of {self._what} is gone")
        if status == 416:
            raise ArtifactCorrupt(
                f"the store's artifact of {self._what} ends before byte {start:,}; "
                f"{self._length:,} were published"
            )
        if status in (401, 403):
            self._take_new_link(url)
            raise StorageUnavailable("the store refused the link")
        ranged = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if status != 206 or ranged is None:
            raise StorageUnavailable(f"the store answered {status} where a range was asked for")
        first, last, total = (int(number) for number in ranged.groups())
        if total != self._length:
            raise ArtifactCorrupt(
                f"the store's artifact of {self._what} has {total:,} bytes; {self._length:,} were "
                "published: it is " + ("longer" if total > self._length else "shorter")
            )
        if (first, last) != (start, end - 1):
            raise StorageUnavailable("the store answered with another range than was asked for")
        etag = answer.headers.get("ETag")
        with self._lock:
            if self._etag is None:
                self._etag = etag
            elif etag != self._etag:
                raise ObjectChanged

    def _take_new_link(self, refused: str) -> None:
        """Once for all threads that were refused with the same link.

        Raises:
            StorageUnavailable: new links are refused too.
        """
        with self._lock:
            if self._url != refused:
                return
            self._renewals += 1
            if self._renewals > _RENEWALS:
                raise StorageUnavailable(f"the store refuses the links to {self._what}")
            self._url = _checked(self._renew())


class _Turn:
    """Pieces are written one after the other, whichever comes first."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._next = 0
        self._moved = threading.Condition()

    @contextmanager
    def of(self, number: int) -> Iterator[bool]:
        """Waits for this piece's turn; yields False if another thread has failed meanwhile."""
        with self._moved:
            while self._next != number and not self._work.failed:
                self._moved.wait(0.1)
            ours = self._next == number and not self._work.failed
        yield ours
        # Not reached after an error: nobody's turn comes then, and all end by `failed`.
        with self._moved:
            self._next = number + 1
            self._moved.notify_all()


def _read_into(answer: BaseHTTPResponse) -> Callable[[memoryview], int]:
    """Reads an answer's body straight into memory. What urllib3 has for that reads first and copies
    then, a fifth of a download's time; what it wraps does not."""
    wrapped = getattr(getattr(answer, "_fp", None), "readinto", None)
    return wrapped if callable(wrapped) else answer.readinto


def _checked(url: str) -> str:
    """
    Raises:
        AnswerInvalid: not https (plain http only to this machine).
    """
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        host = parts.hostname or ""
        if host and (parts.scheme == "https" or (parts.scheme == "http" and is_this_machine(host))):
            return url
    raise AnswerInvalid("the service sent a link that is not https")


def _pool(url: str, ca_file: Path | None, threads: int) -> urllib3.PoolManager:
    settings: dict[str, Any] = {
        "maxsize": threads,
        "timeout": urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
    }
    parts = urlsplit(url)
    if parts.scheme == "https":
        settings["ssl_context"] = _tls(ca_file)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        return urllib3.ProxyManager(proxy, **settings)
    return urllib3.PoolManager(**settings)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ProfileInvalid(f"store.ca_file: {ca_file} cannot be used: {error}") from None
    return context


def _write_at(file: BinaryIO, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written
