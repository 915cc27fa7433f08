"""The cache of artifacts: ciphertext only, by artifact id, shared by all processes of a user.

An entry appears whole (temporary file, digest checked, fsync, rename) or not at all. Its length and
header tag are compared with the pin at each use; its segments authenticate as they are read.

Writing a large model to a slow disk can take longer than downloading it. Who needs the artifact
rather than its entry does not wait for that: the verified file is handed out, and becomes the entry
meanwhile.
"""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from modelkms.errors import CacheUnsafe, LocalDiskFull, ModelKmsError
from modelkms.folders import (
    free_bytes,
    local_error,
    make_private,
    open_private,
    sync_folder,
    try_lock,
)
from modelkms.pins import matches_pin
from modelkms.types import PinInfo

_log = logging.getLogger("modelkms")

_ID = re.compile(r"[0-9a-f]{32}")
_PARTIAL = ".partial"
_LOCK = ".lock"
_POLL_S = 0.05
STALL_S = 30.0
"""A filler that makes no progress for so long is no longer waited for."""

_BEHIND_BYTES = 16 << 20
"""Smaller entries are durable at once."""

Fill = Callable[[BinaryIO], None]
"""Writes the artifact into an empty or begun file, and verifies it against its pin."""


class ArtifactCache:
    """One folder of artifacts. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, max_bytes: int, *, stall_s: float = STALL_S) -> None:
        """`max_bytes`: the longest unused entries go when all together are larger."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._behind: list[threading.Thread] = []
        self._behind_lock = threading.Lock()

    def get(self, artifact_id: str, pin: PinInfo) -> BinaryIO | None:
        """The entry, opened for reading; None if there is none that fits the pin.

        Raises:
            CacheUnsafe: others could write to the folder.
        """
        make_private(self._folder)
        path = self._entry(artifact_id)
        try:
            descriptor = open_private(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except CacheUnsafe:
            _log.warning("dropped a cache entry that is not a plain file of ours: %s", path.name)
            self.drop(artifact_id)
            return None
        file = io.FileIO(descriptor, "rb", closefd=True)
        if not matches_pin(file, pin):
            _log.warning("dropped a cache entry that does not fit its pin: %s", path.name)
            file.close()
            self.drop(artifact_id)
            return None
        os.utime(descriptor)  # last used now
        return file

    def get_or_fill(
        self, artifact_id: str, pin: PinInfo, fill: Fill, *, durable: bool = True
    ) -> BinaryIO:
        """The entry; made by `fill` if there is none. Another process that makes it is waited for.

        Args:
            durable: if not, a large artifact that was filled just now is given at once, and becomes
                an entry meanwhile (`settle` waits for that). Should it fail, a warning says so.

        Raises:
            LocalDiskFull, LocalDiskError: the cache cannot hold it; the caller may go on uncached.
            CacheUnsafe: others could write to the folder.
            and whatever `fill` raises.
        """
        while True:
            if (file := self.get(artifact_id, pin)) is not None:
                return file
            with ExitStack() as lock:
                if lock.enter_context(self._filling(artifact_id)):
                    # It may have been finished between our look and our lock.
                    if (file := self.get(artifact_id, pin)) is not None:
                        return file
                    filled = self._filled(artifact_id, pin, fill)
                    if durable or pin.length_bytes < _BEHIND_BYTES:
                        self._publish(artifact_id, filled)
                        return self._published(artifact_id, pin)
                    return self._published_behind(artifact_id, filled, lock.pop_all())
            self._wait_for_filler(artifact_id)

    def settle(self) -> None:
        """Wait until every artifact that was given before it was durable is an entry."""
        with self._behind_lock:
            behind = list(self._behind)
        for thread in behind:
            thread.join()

    def drop(self, artifact_id: str) -> None:
        """Remove an entry that does not verify. Whoever has it open keeps it."""
        self.settle()  # else it comes after all
        try:
            self._entry(artifact_id).unlink(missing_ok=True)
        except OSError as error:
            raise local_error(error, "a broken cache entry cannot be removed") from error

    def _filled(self, artifact_id: str, pin: PinInfo, fill: Fill) -> io.FileIO:
        """The file that becomes the entry, whole and verified. We hold its lock."""
        self._make_room(artifact_id, pin.length_bytes)
        partial = self._entry(artifact_id).with_suffix(_PARTIAL)
        try:
            descriptor = open_private(partial, os.O_RDWR | os.O_CREAT)
        except CacheUnsafe:
            partial.unlink()
            descriptor = open_private(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        file = io.FileIO(descriptor, "rb+", closefd=True)
        try:
            fill(file)
        except OSError as error:
            file.close()
            partial.unlink(missing_ok=True)
            raise self._cannot_take(error) from error
        except BaseException:
            file.close()  # what came so far stays, for the next attempt to go on from
            raise
        return file

    def _publish(self, artifact_id: str, filled: io.FileIO) -> None:
        """Make it durable and give it its name. We hold its lock."""
        partial = self._entry(artifact_id).with_suffix(_PARTIAL)
        with filled:
            try:
                os.fsync(filled.fileno())
                partial.rename(self._entry(artifact_id))
                sync_folder(self._folder)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise self._cannot_take(error) from error

    def _published(self, artifact_id: str, pin: PinInfo) -> BinaryIO:
        done = self.get(artifact_id, pin)
        if done is None:
            raise CacheUnsafe(f"a new entry of {self._folder} was changed by somebody else")
        return done

    def _published_behind(self, artifact_id: str, filled: io.FileIO, lock: ExitStack) -> BinaryIO:
        """As `_publish`, by a thread that has the entry's lock; the file, open to read, at once.

        No daemon: a program that ends first makes it durable.
        """
        given = io.FileIO(os.dup(filled.fileno()), "rb", closefd=True)
        given.seek(0)

        def publish() -> None:
            with lock:
                try:
                    self._publish(artifact_id, filled)
                except ModelKmsError as error:
                    _log.warning("not kept in the cache: %s", error.message)

        thread = threading.Thread(target=publish, name="modelkms-cache")
        with self._behind_lock:
            self._behind = [*(each for each in self._behind if each.is_alive()), thread]
            thread.start()
        return given

    def _cannot_take(self, error: OSError) -> ModelKmsError:
        return local_error(error, f"the cache {self._folder} cannot take the artifact")

    def _make_room(self, artifact_id: str, wanted_bytes: int) -> None:
        """Let the longest unused entries go, until there is room for one more.

        Raises:
            LocalDiskFull: there cannot be.
        """
        if wanted_bytes > self._max_bytes:
            raise LocalDiskFull(
                f"the artifact has {wanted_bytes:,} bytes, the cache may have {self._max_bytes:,}",
                hint="raise cache_max_bytes in the profile",
            )
        entries = sorted(self._others(artifact_id), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            enough = total + wanted_bytes <= self._max_bytes
            if enough and free_bytes(self._folder) >= wanted_bytes:
                return
            if self._evict(path):
                total -= size
        if (free := free_bytes(self._folder)) < wanted_bytes:
            raise LocalDiskFull(
                f"the artifact has {wanted_bytes:,} bytes, {self._folder} has {free:,} free",
                hint="free some space, or set cache_dir in the profile to a larger disk",
            )

    def _others(self, artifact_id: str) -> Iterator[tuple[float, int, Path]]:
        """Last use, size and path of each file but this artifact's."""
        for path in self._folder.iterdir():
            if _ID.fullmatch(path.stem) and path.stem != artifact_id and path.suffix != _LOCK:
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                yield status.st_mtime, status.st_size, path

    def _evict(self, path: Path) -> bool:
        """Remove a file with its lock, unless somebody fills that entry."""
        lock_file = path.with_suffix(_LOCK)
        with try_lock(lock_file) as held:
            if held:
                path.unlink(missing_ok=True)
                lock_file.unlink(missing_ok=True)
        return held

    @contextmanager
    def _filling(self, artifact_id: str) -> Iterator[bool]:
        with try_lock(self._entry(artifact_id).with_suffix(_LOCK)) as held:
            yield held

    def _wait_for_filler(self, artifact_id: str) -> None:
        """Return when the entry is there or its filler is gone.

        Raises:
            LocalDiskFull: never ours to say; LocalDiskError if the filler stands still.
        """
        entry = self._entry(artifact_id)
        seen, since = -1, time.monotonic()
        while not entry.exists():
            with self._filling(artifact_id) as free:
                if free:
                    return
            size = _size(entry.with_suffix(_PARTIAL))
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > self._stall_s:
                raise local_error(
                    TimeoutError(0, "it stands still"), "another process fills this cache entry"
                )
            time.sleep(_POLL_S)

    def _entry(self, artifact_id: str) -> Path:
        assert _ID.fullmatch(artifact_id)  # convert.py lets no other through
        return self._folder / artifact_id


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
