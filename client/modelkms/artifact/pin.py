"""The pin of an artifact: what identifies exactly these bytes (artifact-v1 §6)."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Protocol

from modelkms_api.artifact import (
    MAX_CLEAR_PREFIX_BYTES,
    PIN_PIECE_BYTES,
    ArtifactFormatError,
    parse_clear_prefix,
)

from modelkms.artifact.parallel import CHUNK_BYTES, THREADS, Work
from modelkms.artifact.sources import AnySource, opened_source, read_all_into, read_exactly
from modelkms.errors import ArtifactCorrupt


@dataclass(frozen=True, slots=True)
class ArtifactPin:
    """What identifies an artifact file.

    Attributes:
        length_bytes: of the whole file.
        floe_header_tag: 32 bytes. It commits to key, clear header and FLOE parameters.
        digest: 32 bytes: SHA-256 over the SHA-256 digests of the file's 8 MiB pieces.
    """

    length_bytes: int
    floe_header_tag: bytes
    digest: bytes


class PinLike(Protocol):
    """A pin, in whichever type the caller has it."""

    @property
    def length_bytes(self) -> int: ...
    @property
    def floe_header_tag(self) -> bytes: ...
    @property
    def digest(self) -> bytes: ...


def pin_of(source: AnySource) -> ArtifactPin:
    """The pin of a stored artifact. Reads all of it, in two threads; needs no key.

    Raises:
        ArtifactCorrupt: it is no artifact.
    """
    with opened_source(source) as stored:
        length = stored.length_bytes
        head = read_exactly(stored, 0, min(length, MAX_CLEAR_PREFIX_BYTES))
        try:
            tag = parse_clear_prefix(head).floe_header_tag(head)
        except ArtifactFormatError as error:
            raise ArtifactCorrupt(f"this is no artifact, or it is damaged: {error}") from error
        digest = ParallelDigest()
        work = Work(range(-(-length // PIN_PIECE_BYTES)))

        def hash_pieces() -> None:
            scratch = memoryview(bytearray(CHUNK_BYTES))
            while (taken := work.take()) is not None:
                start = taken[0] * PIN_PIECE_BYTES
                for at in range(start, min(start + PIN_PIECE_BYTES, length), CHUNK_BYTES):
                    part = scratch[: min(CHUNK_BYTES, length - at)]
                    read_all_into(stored, at, part)
                    digest.add(at, part)

        work.run(hash_pieces, THREADS if length > PIN_PIECE_BYTES else 1, "modelkms-digest")
        return ArtifactPin(length, tag, digest.digest())


class ParallelDigest:
    """The pin's digest from several threads: bytes may come in any order, each of them once.

    What comes before its turn within a piece is copied and waits. So memory stays small if each
    thread works on pieces of its own, up to what crosses their bounds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, _Piece] = {}
        self._digests: dict[int, bytes] = {}
        self.length_bytes = 0

    def add(self, offset: int, data: memoryview) -> None:
        """Add the bytes of the file that begin at `offset`."""
        with self._lock:
            self.length_bytes += len(data)
        while data:
            number, within = divmod(offset, PIN_PIECE_BYTES)
            part = data[: PIN_PIECE_BYTES - within]
            self._add(number, within, part)
            offset += len(part)
            data = data[len(part) :]

    def digest(self) -> bytes:
        """32 bytes, once all of the file was added."""
        pieces = dict(self._digests)
        pieces.update((number, piece.hasher.digest()) for number, piece in self._open.items())
        assert sum(len(piece.waiting) for piece in self._open.values()) == 0
        assert sorted(pieces) == list(range(-(-self.length_bytes // PIN_PIECE_BYTES)))
        return hashlib.sha256(b"".join(pieces[number] for number in sorted(pieces))).digest()

    def _add(self, number: int, within: int, part: memoryview) -> None:
        with self._lock:
            piece = self._open.setdefault(number, _Piece())
            if within != piece.hashed_bytes or piece.busy:
                piece.waiting[within] = bytes(part)
                return
            piece.busy = True
        following: bytes | memoryview | None = part
        while following is not None:
            piece.hasher.update(following)  # without our lock, and without the interpreter's
            with self._lock:
                piece.hashed_bytes += len(following)
                following = piece.waiting.pop(piece.hashed_bytes, None)
                if following is None:
                    piece.busy = False
                    if piece.hashed_bytes == PIN_PIECE_BYTES:
                        self._digests[number] = self._open.pop(number).hasher.digest()


@dataclass(slots=True)
class _Piece:
    """8 MiB of the file while they are hashed.

    Attributes:
        hashed_bytes: of its beginning.
        waiting: bytes that came early, by where they begin.
        busy: a thread is hashing.
    """

    hasher: hashlib._Hash = field(default_factory=hashlib.sha256)
    hashed_bytes: int = 0
    waiting: dict[int, bytes] = field(default_factory=dict)
    busy: bool = False
