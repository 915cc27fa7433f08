"""The spool of pushes: ciphertext that is not published yet, so that a broken push can go on.

A spool is whole once its state file names the version and the pin. Before that it is worthless: the
data key was never written anywhere, so nothing can be encrypted under the same header again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from modelkms_api.encoding import length_prefixed

from modelkms.errors import ModelKmsError, PushInProgress
from modelkms.folders import (
    local_error,
    make_private,
    open_private,
    sync_folder,
    try_lock,
    write_all,
)
from modelkms.types import PinInfo

_log = logging.getLogger("modelkms")

_SLOTS = 16
"""So many pushes of one path to one model may run at once."""
_FORMAT = 1
_KEPT_S = 14 * 24 * 3600.0
"""Older spools are removed: their PENDING versions have expired."""
_LOCK, _STATE, _ARTIFACT = ".lock", ".json", ".artifact"


@dataclass(frozen=True, slots=True)
class SpooledPush:
    """What a whole spool holds. Nothing secret.

    Attributes:
        version: resource name of the PENDING version.
        source: digest of what was encrypted: names, sizes and times of change.
        length_bytes, floe_header_tag, digest: the pin; bytes in hexadecimal.
    """

    request_id: str
    version: str
    source: str
    length_bytes: int
    floe_header_tag: str
    digest: str

    @property
    def pin(self) -> PinInfo:
        return PinInfo(
            self.length_bytes, bytes.fromhex(self.floe_header_tag), bytes.fromhex(self.digest)
        )


def spool_key(*parts: str) -> str:
    """Who pushes what to where, as a file name. Injective up to SHA-256."""
    return hashlib.sha256(length_prefixed(*(part.encode() for part in parts))).hexdigest()[:32]


@contextmanager
def claimed(folder: Path, key: str, source: str) -> Iterator[Spool]:
    """A spool that nobody else uses, whole if an earlier push of the same source left one.

    Raises:
        PushInProgress: all slots are in use.
        CacheUnsafe, LocalDiskFull, LocalDiskError: the state folder cannot be used.
    """
    make_private(folder)
    _sweep(folder)
    slots = [folder / f"{key}-{number:02}" for number in range(_SLOTS)]
    # Whole ones first, else a free slot below would hide them.
    slots.sort(key=lambda slot: (not slot.with_suffix(_STATE).exists(), slot))
    for slot in slots:
        with try_lock(slot.with_suffix(_LOCK)) as held:
            if held:
                spool = Spool(slot)
                if (spool.whole() or _nothing).source != source:
                    spool.clear()  # of another state of the source, or never finished
                try:
                    yield spool
                finally:
                    if spool.whole() is None:
                        spool.clear()
                        slot.with_suffix(_LOCK).unlink(missing_ok=True)
                return
    raise PushInProgress("too many pushes of this path to this model are running")


class Spool:
    """One slot, locked by us."""

    def __init__(self, slot: Path) -> None:
        self._artifact = slot.with_suffix(_ARTIFACT)
        self._state = slot.with_suffix(_STATE)

    @property
    def path(self) -> Path:
        """Of the ciphertext."""
        return self._artifact

    def whole(self) -> SpooledPush | None:
        """What the spool holds, if it is whole."""
        try:
            descriptor = open_private(self._state, os.O_RDONLY)
        except (FileNotFoundError, ModelKmsError):
            return None
        try:
            with io.FileIO(descriptor) as file:
                fields = json.loads(file.read())
            if fields.pop("format") != _FORMAT:
                return None
            push = SpooledPush(**fields)
            if self._artifact.lstat().st_size != push.pin.length_bytes:
                return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return push

    def create(self) -> BinaryIO:
        """An empty file for the ciphertext, 0600."""
        self.clear()
        return io.FileIO(open_private(self._artifact, os.O_RDWR | os.O_CREAT | os.O_EXCL), "rb+")

    def open(self) -> BinaryIO:
        """The ciphertext."""
        return io.FileIO(open_private(self._artifact, os.O_RDONLY), "rb")

    def complete(self, push: SpooledPush) -> None:
        """Say that the ciphertext is whole and durable; survives a crash from here on."""
        temporary = self._state.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_all(descriptor, json.dumps({"format": _FORMAT, **asdict(push)}).encode())
            os.fsync(descriptor)
        except OSError as error:
            raise local_error(error, "the spool of this push cannot be written") from error
        finally:
            os.close(descriptor)
        temporary.rename(self._state)
        sync_folder(self._state.parent)

    def clear(self) -> None:
        """Forget what it holds: the state first, so that no state speaks of a missing artifact."""
        self._state.unlink(missing_ok=True)
        self._artifact.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove spools that nobody came back to."""
    for path in folder.glob("*" + _LOCK):
        try:
            old = time.time() - path.lstat().st_mtime > _KEPT_S
        except FileNotFoundError:
            continue
        if old:
            with try_lock(path) as held:
                if held:
                    _log.info("removing a forgotten spool: %s", path.stem)
                    Spool(path.with_suffix("")).clear()
                    path.unlink(missing_ok=True)


_nothing = SpooledPush("", "", "", 0, "", "")
