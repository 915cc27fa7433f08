"""From the store into the cache: streamed, resumed, and compared with the pin before it is used."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO

import grpc
from modelkms_api.v1.artifact_service_pb2 import ReadArtifactRequest

from modelkms import catalogue
from modelkms.artifact.pin import ParallelDigest
from modelkms.cache import ArtifactCache
from modelkms.errors import (
    ArtifactChanged,
    ArtifactCorrupt,
    ArtifactMismatch,
    LocalDiskError,
    LocalDiskFull,
    VersionNotFinalized,
)
from modelkms.folders import local_error, reserve
from modelkms.linked import LinkedObject, ObjectChanged
from modelkms.memory_file import available_memory
from modelkms.pins import HEAD_BYTES, check_head
from modelkms.session import ATTEMPTS, Session, may_retry
from modelkms.stall import guarded
from modelkms.types import PinInfo, Progress, ProgressCallback, VersionInfo

_log = logging.getLogger("modelkms")

PIECE_BYTES = 256 << 20
"""Of one ReadArtifact call, so that a deadline can bound each."""
_PIECE_DEADLINE_S = 1800.0
_RESTARTS = 2
_READ_BYTES = 1 << 20

Authenticates = Callable[[BinaryIO], bool]
"""Whether every segment of an artifact authenticates under its data key."""


class Downloader:
    """Gets artifacts, through the cache where it can. Safe to use from several threads."""

    def __init__(
        self,
        session: Session,
        cache: ArtifactCache,
        *,
        piece_bytes: int = PIECE_BYTES,
        looked_up: Callable[[bool], object] = lambda _hit: None,
    ) -> None:
        self._looked_up = looked_up
        self._session = session
        self._cache = cache
        self._piece_bytes = piece_bytes

    def open(
        self,
        version: VersionInfo,
        progress: ProgressCallback | None = None,
        authenticates: Authenticates | None = None,
        link: str = "",
    ) -> BinaryIO:
        """The artifact of a version, verified against its pin; uncached if the cache is full.

        Args:
            authenticates: used only to tell a damaged object from a forged one.
            link: presigned, as the service gave it with the version; empty: read through the
                service.

        Raises:
            ArtifactCorrupt, ArtifactMismatch, ArtifactChanged: the store has not what was pinned.
            ArtifactMissing, StorageUnavailable, ServiceUnavailable, …: it cannot be read.
            CacheUnsafe: others could write to the cache.
            LocalDiskFull: neither cache nor memory has room for it.
        """
        pin = require_pin(version)

        filled = False

        def fill(file: BinaryIO) -> None:
            nonlocal filled
            filled = True
            self._download(version, pin, progress, authenticates, link).run(file)

        try:
            cached = self._cache.get_or_fill(version.artifact_id, pin, fill, durable=False)
            self._looked_up(not filled)
            return cached
        except (LocalDiskFull, LocalDiskError) as error:
            _log.warning("going on without the cache: %s", error.message)
        self._looked_up(False)
        file = _scratch(pin.length_bytes)
        try:
            fill(file)
        except OSError as error:
            file.close()
            raise local_error(error, "the artifact cannot be held") from error
        except BaseException:
            file.close()
            raise
        return file

    def prefetch(
        self,
        version: VersionInfo,
        progress: ProgressCallback | None = None,
        link: str = "",
    ) -> None:
        """Fill the cache.

        Raises: as `open`; a full cache is an error here.
        """
        pin = require_pin(version)
        download = self._download(version, pin, progress, None, link)
        self._cache.get_or_fill(version.artifact_id, pin, download.run).close()

    def _download(
        self,
        version: VersionInfo,
        pin: PinInfo,
        progress: ProgressCallback | None,
        authenticates: Authenticates | None,
        link: str,
    ) -> _Download:
        return _Download(
            self._session, version, pin, progress, self._piece_bytes, authenticates, link
        )

    def drop(self, version: VersionInfo) -> None:
        """Forget a cached artifact that does not authenticate."""
        self._cache.drop(version.artifact_id)


class _Download:
    """One artifact, from wherever the file ends to its verified end."""

    def __init__(
        self,
        session: Session,
        version: VersionInfo,
        pin: PinInfo,
        progress: ProgressCallback | None,
        piece_bytes: int,
        authenticates: Authenticates | None,
        link: str,
    ) -> None:
        self._session = session
        self._version = version
        self._pin = pin
        self._progress = progress
        self._piece_bytes = piece_bytes
        self._authenticates = authenticates
        self._link = link

    def run(self, file: BinaryIO) -> None:
        """Fill and verify `file`. Bytes that are in it already came from an attempt before.

        An object replaced between two reads shows by its ETag, or as a wrong digest of what was
        read in parts; it is read anew, at most twice, and only in one go can it be told to be the
        wrong one (F46).
        """
        for _ in range(1 + _RESTARTS):
            digest = ParallelDigest()
            in_parts = self._take_up(file, digest)
            reserve(file.fileno(), file.tell(), self._pin.length_bytes - file.tell())
            try:
                in_parts |= self._ranges(file, digest) if self._link else self._stream(file, digest)
            except ObjectChanged:
                _log.info("the object of %s was replaced; beginning anew", self._version.reference)
                file.truncate(0)
                continue
            if digest.digest() == self._pin.digest:
                check_head(file, self._version, self._pin)
                return
            if not in_parts:
                file.seek(0)
                damaged = self._authenticates is not None and not self._authenticates(file)
                file.truncate(0)
                if damaged:
                    raise ArtifactCorrupt(f"the artifact of {self._version.reference} is damaged")
                raise ArtifactMismatch(
                    f"the store's artifact of {self._version.reference} is not the one that was "
                    "published: its digest is another"
                )
            file.truncate(0)
        raise ArtifactChanged(
            f"the artifact of {self._version.reference} changed each time while it was read"
        )

    def _take_up(self, file: BinaryIO, digest: ParallelDigest) -> bool:
        """Go on after what is there; whether there was anything."""
        file.seek(0, os.SEEK_END)
        if file.tell() > self._pin.length_bytes:
            file.truncate(0)
        file.seek(0)
        while data := file.read(_READ_BYTES):
            digest.add(file.tell() - len(data), memoryview(data))
        return file.tell() > 0

    def _ranges(self, file: BinaryIO, digest: ParallelDigest) -> bool:
        """Append the rest by the link; whether it may be of several states of the object."""
        offset = file.tell()
        self._tell(offset)
        if offset == self._pin.length_bytes:
            return True
        store = self._session.profile.store
        stored = LinkedObject(
            self._session,
            self._link,
            self._new_link,
            self._version.reference,
            self._pin.length_bytes,
            store.ca_file if store is not None else None,
        )

        def appended(before: int, end: int) -> None:
            if before < HEAD_BYTES:
                check_head(file, self._version, self._pin)
            self._tell(end)

        stored.append_to(file, offset, digest, appended)
        return offset > 0 or not stored.pinned

    def _new_link(self) -> str:
        """Presigned, for this very version."""
        return catalogue.resolve_located(self._session, self._version.name, None)[1]

    def _stream(self, file: BinaryIO, digest: ParallelDigest) -> bool:
        """Append the rest; whether it took more than one unbroken stream."""
        first_offset = offset = file.tell()
        length, failures, streams = self._pin.length_bytes, 0, 0
        self._tell(offset)
        while offset < length:
            before = offset
            streams += 1
            try:
                offset = self._piece(file, digest, offset)
            except grpc.RpcError as error:
                offset = file.tell()
                failures = failures + 1 if offset == before else 1
                told = self._session.explain(error)
                if failures >= ATTEMPTS or not (may_retry(error, told) or _broken_off(error)):
                    raise told from None
                _log.info("artifact stream broke at %d: %s", offset, told.reason)
                self._session.pause(self._session.pause_s(failures, told))
                continue
            if offset == before:
                raise ArtifactCorrupt(
                    f"the store's artifact of {self._version.reference} ends after {offset:,} "
                    f"bytes; {length:,} were published"
                )
        return streams > 1 or first_offset > 0

    def _piece(self, file: BinaryIO, digest: ParallelDigest, offset: int) -> int:
        """One ReadArtifact call; the new offset."""
        length = self._pin.length_bytes
        wanted = length - offset
        # At the end, one byte more than there should be, so that an extended object shows.
        wanted = self._piece_bytes if wanted > self._piece_bytes else wanted + 1
        request = ReadArtifactRequest(
            version=self._version.name, offset_bytes=offset, length_bytes=wanted
        )
        call = self._session.artifacts.ReadArtifact(request, timeout=_PIECE_DEADLINE_S)
        with guarded(call.cancel) as guard:
            for answer in call:
                guard.tick()
                if offset + len(answer.data) > length:
                    call.cancel()
                    raise ArtifactCorrupt(
                        f"the store's artifact of {self._version.reference} is longer than the "
                        f"{length:,} bytes that were published"
                    )
                _append(file, answer.data)
                digest.add(offset, memoryview(answer.data))
                head_seen = offset >= HEAD_BYTES
                offset += len(answer.data)
                if not head_seen and offset >= min(HEAD_BYTES, length):
                    check_head(file, self._version, self._pin)
                    file.seek(0, os.SEEK_END)
                self._tell(offset)
        return offset

    def _tell(self, offset: int) -> None:
        if self._progress is not None:
            self._progress(Progress("download", offset, self._pin.length_bytes))


def require_pin(version: VersionInfo) -> PinInfo:
    """
    Raises:
        VersionNotFinalized: the version has no pin.
    """
    if version.pin is None:
        raise VersionNotFinalized(f"{version.reference} was never finalized: its push broke off")
    return version.pin


def _append(file: BinaryIO, data: bytes) -> None:
    """Write all of it: a raw file may take less at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _broken_off(error: grpc.RpcError) -> bool:
    """Whether it was our stall guard, or a deadline of one piece: go on from where it stopped."""
    return error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


def _scratch(length_bytes: int) -> BinaryIO:
    """A nameless file for ciphertext: in memory if that is ample, else in the temporary folder."""
    if available_memory() > 2 * length_bytes:
        return io.FileIO(os.memfd_create("modelkms-ciphertext", os.MFD_CLOEXEC), "rb+")
    try:
        with tempfile.TemporaryFile() as nameless:
            return io.FileIO(os.dup(nameless.fileno()), "rb+")
    except OSError as error:
        raise local_error(error, "there is no room for the artifact") from error
