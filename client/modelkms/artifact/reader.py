"""Reading an artifact: what it is, whether it is the one that is meant, then any part of it."""

from __future__ import annotations

import hmac
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from modelkms_api.artifact import (
    MAX_CLEAR_PREFIX_BYTES,
    ArtifactFormatError,
    ClearPrefix,
    parse_clear_prefix,
)
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE, ArtifactHeader

from modelkms.artifact import archive
from modelkms.artifact.archive import Member
from modelkms.artifact.extraction import Extraction, write_at
from modelkms.artifact.floe import Body, Decryptor
from modelkms.artifact.parallel import ProgressBytes
from modelkms.artifact.payload import Payload
from modelkms.artifact.pin import PinLike
from modelkms.artifact.sources import AnySource, ArtifactSource, opened_source, read_exactly
from modelkms.errors import ArtifactCorrupt, ArtifactMismatch, MemberNotFound, ModelClosed


@dataclass(frozen=True, slots=True)
class Expected:
    """What an artifact must be. None: not checked, for those who have only file and key.

    Attributes:
        version: resource name.
        version_uid, artifact_id: 32 hexadecimal digits each.
        pin: its length and header tag are checked at each open; its digest where the file came
            from (artifact-v1 §6).
    """

    version: str | None = None
    version_uid: str | None = None
    artifact_id: str | None = None
    pin: PinLike | None = None


class ArtifactReader:
    """An open artifact. Safe to use from several threads; close it when done.

    Memory does not grow with the artifact, but by about 0.5 KB a member.

    Attributes:
        header: the clear header; authenticated.
        length_bytes: of the artifact file.
        payload_bytes: of what it decrypts to: the file, or the archive.
    """

    def __init__(self, source: AnySource, key: bytes, expected: Expected | None = None) -> None:
        """
        Args:
            source: a path, an open file (which stays open after `close`), bytes, or an
                `ArtifactSource`.
            key: 32 bytes.

        Raises:
            ArtifactMismatch: a whole artifact, but not the expected one; found before any key is
                used.
            ArtifactCorrupt: it is no artifact, was changed, or was made with another key.
            ArchiveRejected: a folder's archive breaks artifact-v1 §5.
            OSError: it cannot be read.
        """
        self._closed = False
        self._users = 0
        self._idle = threading.Condition()
        with ExitStack() as stack:
            stored = stack.enter_context(opened_source(source))
            clear, floe_header = _clear_prefix(stored)
            _check(stored, clear, floe_header, expected or Expected())
            decryptor = Decryptor(key, clear.header_bytes, floe_header)
            body = Body.of(stored.length_bytes - clear.segments_offset, decryptor.segment_length)
            payload = Payload(stored, clear.segments_offset, decryptor, body)
            # artifact-v1 §7, step 6: the directory of a folder, before any member.
            self._members = _members(clear.header, payload)
            self._resources = stack.pop_all()
        self._payload = payload
        self.header = clear.header
        self.length_bytes = stored.length_bytes
        self.payload_bytes = payload.length_bytes

    # --- members --------------------------------------------------------------------------------

    def files(self) -> list[str]:
        """Names of the files, sorted; of a single file its own."""
        return list(self._members)

    def size(self, name: str | None = None) -> int:
        """Bytes of a file.

        Raises: as `open`.
        """
        return self._member(name).size_bytes

    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {name: member.size_bytes for name, member in self._members.items()}

    def read(self, name: str | None = None) -> bytes:
        """All of a file, once all of it is verified.

        Raises: as `open`, and ArtifactCorrupt: something of it does not authenticate.
        """
        member = self._entered(name)
        return self.read_range(member.offset, member.size_bytes)

    def memory(
        self, name: str | None = None, offset: int = 0, length: int | None = None
    ) -> memoryview:
        """A part of a file, as `read`, in memory that is the caller's alone: writable, of a
        mapping of its own that goes with the last view of it, at a 2 MiB page if it is as large.

        What needs no `bytes` is best served with it: arrays and tensors are made on it as it is
        (`numpy.frombuffer`, `torch.frombuffer`).

        Args:
            length: fewer bytes come only at the file's end; None: to its end.

        Raises: as `read`; ValueError: offset or length is negative.
        """
        member = self._entered(name)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length are not negative")
        left = max(0, member.size_bytes - offset)
        with self._in_use():
            return self._payload.memory(
                member.offset + offset, left if length is None else min(left, length)
            )

    def open(self, name: str | None = None) -> MemberFile:
        """A file to read from: seekable, read-only. Reading raises ArtifactCorrupt where a segment
        does not authenticate, and ModelClosed once this reader is closed.

        Args:
            name: as `files` tells it; may be left out where there is only one.

        Raises:
            MemberNotFound: there is no such file, or no name is given and there are several.
            ArchiveRejected: its local header is not what the directory says.
            ModelClosed: the reader is closed.
        """
        return MemberFile(self, self._entered(name))

    def extract_to(self, folder: str | Path, files: Iterable[str] | None = None) -> None:
        """Write every file, or only `files`, into `folder`, which is made if need be: folders 0700,
        files 0600.

        Only verified bytes are ever written. On an error what was written is removed again.

        Raises: as `read`.
            FileExistsError: something is in the way. OSError: it cannot be written.
        """
        names = self._members if files is None else files
        members = [self._member(name) for name in names]
        with self._in_use(), Extraction(Path(folder)) as target:
            for member in members:
                self._check_local_header(member)
            for member in members:
                with target.create(member.name) as file:
                    self._extract(member, partial(write_at, file))

    def _extract(self, member: Member, write: Callable[[int, memoryview], None]) -> None:
        if member.size_bytes >= _LARGE_BYTES:
            self._payload.chunks(member.offset, member.size_bytes, write)
        else:  # many small ones lie in one segment: it is decrypted once
            write(0, memoryview(self._payload.read(member.offset, member.size_bytes)))

    def write_to(self, descriptor: int, name: str | None = None) -> None:
        """Write a file into an open one, from its beginning. Only verified bytes are ever written.

        Raises: as `read`. OSError: it cannot be written.
        """
        member = self._entered(name)
        with self._in_use():
            self._payload.chunks(member.offset, member.size_bytes, partial(write_at, descriptor))

    def verify(self, progress: ProgressBytes | None = None) -> None:
        """Authenticate all of the artifact in two threads, and compare every local header.

        Args:
            progress: called from worker threads, never from two at once.

        Raises:
            ArtifactCorrupt: of several bad segments, the error tells the first.
            ArchiveRejected, ModelClosed: as `read`.
        """
        with self._in_use():
            self._payload.verify(progress)
            for member in self._members.values():
                self._check_local_header(member)

    # --- its end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Wipe cached plaintext; open files of this reader cannot be read any more. Idempotent.

        What other threads are reading right now is finished first.
        """
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._users == 0)
        self._payload.forget()
        self._resources.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keeps the source open: a descriptor that is closed under a reading thread may be another
        file by the time it reads.

        Raises:
            ModelClosed: it is closed.
        """
        with self._idle:
            if self._closed:
                raise ModelClosed("the model was closed")
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                if self._users == 0:
                    self._idle.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Plaintext of the payload at any offset; how many bytes. For `MemberFile`.

        Raises: as `Payload.read_into`, and ModelClosed.
        """
        with self._in_use():
            return self._payload.read_into(offset, buffer)

    def read_range(self, offset: int, length: int) -> bytes:
        """As `read_into`, for large ranges."""
        with self._in_use():
            return self._payload.read(offset, length)

    def read_ahead(self, offset: int, length: int) -> None:
        """For `MemberFile`: this part of the payload will be read soon."""
        self._payload.read_ahead(offset, length)

    def _entered(self, name: str | None) -> Member:
        """The member, its local header checked."""
        member = self._member(name)
        with self._in_use():
            self._check_local_header(member)
        return member

    def _member(self, name: str | None) -> Member:
        if name is None:
            if len(self._members) > 1:
                raise MemberNotFound(
                    f"the model has {len(self._members):,} files: name one",
                    hint="files() and `modelkms ls` tell their names",
                )
            (name,) = self._members
        try:
            return self._members[name]
        except KeyError:
            raise MemberNotFound(
                f"the model has no file of this name: {name}",
                hint="files() and `modelkms ls` tell their names",
            ) from None

    def _check_local_header(self, member: Member) -> None:
        if self.header.payload_kind != PAYLOAD_KIND_FILE:
            archive.check_local_header(self._payload.read, member)


_LARGE_BYTES = 1 << 20
_SEQUENTIAL_BYTES = 256 << 10
_AHEAD_BYTES = 2 << 20


class MemberFile(io.RawIOBase):
    """One file of an artifact: seekable, read-only. Safe to use from several threads, which then
    share its position; `pread` has none.

    Who has read 256 KiB on end is read ahead of: by as much as it has read, at most 2 MiB. Random
    reads decrypt what they need, nothing else.
    """

    def __init__(self, reader: ArtifactReader, member: Member) -> None:
        super().__init__()
        self._reader = reader
        self._member = member
        self._position = 0
        self._sequential_from = 0
        self._ahead_to = 0
        self._lock = threading.Lock()
        self.name = member.name

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`; the position is neither used nor moved."""
        self._check_closed()
        if length < 0 or offset < 0:
            raise ValueError("length and offset are not negative")
        length = max(0, min(length, self._member.size_bytes - offset))
        return self._reader.read_range(self._member.offset + offset, length)

    def readinto(self, buffer: object) -> int:
        self._check_closed()
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # any buffer
        with self._lock:
            left = max(0, self._member.size_bytes - self._position)
            self._read_ahead(min(left, len(view)))
            taken = self._reader.read_into(self._member.offset + self._position, view[:left])
            self._position += taken
            return taken

    def _read_ahead(self, length: int) -> None:
        """What comes behind a read of `length` bytes at our position is fetched meanwhile, when
        less than half the window is left of what was fetched before."""
        end = self._position + length
        window = min(self._position - self._sequential_from, _AHEAD_BYTES)
        self._ahead_to = max(self._ahead_to, end)
        if window < _SEQUENTIAL_BYTES or end + window // 2 <= self._ahead_to:
            return
        to = min(end + window, self._member.size_bytes)
        if to > self._ahead_to:
            self._reader.read_ahead(self._member.offset + self._ahead_to, to - self._ahead_to)
            self._ahead_to = to

    def readall(self) -> bytes:
        with self._lock:
            data = self.pread(self._member.size_bytes, self._position)
            self._position += len(data)
            return data

    def write(self, _data: object, /) -> int:
        raise io.UnsupportedOperation("not writable")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_closed()
        with self._lock:
            bases = {
                os.SEEK_SET: 0,
                os.SEEK_CUR: self._position,
                os.SEEK_END: self._member.size_bytes,
            }
            if (base := bases.get(whence)) is None:
                raise ValueError("unknown whence")
            if base + offset < 0:
                raise ValueError("negative seek position")
            if base + offset != self._position:
                self._sequential_from = self._ahead_to = base + offset
            self._position = base + offset
            return self._position

    def tell(self) -> int:
        self._check_closed()
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check_closed(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


# --- opening -------------------------------------------------------------------------------------


def read_header(source: AnySource) -> ArtifactHeader:
    """What the clear header says. Nothing of it is authenticated without the key.

    Raises:
        ArtifactCorrupt: it is no artifact.
    """
    with opened_source(source) as stored:
        return _clear_prefix(stored)[0].header


def _clear_prefix(stored: ArtifactSource) -> tuple[ClearPrefix, bytes]:
    """artifact-v1 §7, step 1; the clear prefix, and the FLOE header behind it."""
    head = read_exactly(stored, 0, min(stored.length_bytes, MAX_CLEAR_PREFIX_BYTES))
    try:
        clear = parse_clear_prefix(head)
    except ArtifactFormatError as error:
        raise ArtifactCorrupt(f"this is no artifact, or it is damaged: {error}") from error
    return clear, clear.floe_header(head)


def _check(
    stored: ArtifactSource, clear: ClearPrefix, floe_header: bytes, expected: Expected
) -> None:
    """artifact-v1 §7, steps 2 and 3: is it the one that is meant? Before the key is used (F45)."""
    header = clear.header
    for what, found, wanted in (
        ("version", header.version, expected.version),
        ("version uid", header.version_uid, expected.version_uid),
        ("artifact id", header.artifact_id, expected.artifact_id),
    ):
        if wanted is not None and found != wanted:
            raise ArtifactMismatch(f"the artifact is another than was asked for: {what} {found}")
    if (pin := expected.pin) is None:
        return
    tag = floe_header[-len(pin.floe_header_tag) :]
    if not hmac.compare_digest(tag, pin.floe_header_tag):
        raise ArtifactMismatch("the artifact is another than was published: its header tag differs")
    if stored.length_bytes != pin.length_bytes:
        # The right artifact by its tag, so it was cut or extended.
        raise ArtifactCorrupt(
            f"the artifact has {stored.length_bytes:,} bytes; {pin.length_bytes:,} were published"
        )


def _members(header: ArtifactHeader, payload: Payload) -> dict[str, Member]:
    if header.payload_kind == PAYLOAD_KIND_FILE:
        return {header.file_name: Member(header.file_name, payload.length_bytes, 0, 0)}
    members = archive.read_members(payload.read, payload.length_bytes)
    return {member.name: member for member in members}
