"""The pin of an artifact: what identifies exactly these bytes (artifact-v1 §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from modelkms_api.artifact import (
    MAX_CLEAR_PREFIX_BYTES,
    ArtifactFormatError,
    PinDigest,
    parse_clear_prefix,
)

from modelkms.artifact.sources import AnySource, opened_source, read_exactly
from modelkms.errors import ArtifactCorrupt

_READ_BYTES = 1 << 20


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
    """The pin of a stored artifact. Reads all of it, needs no key.

    Raises:
        ArtifactCorrupt: it is no artifact.
    """
    with opened_source(source) as stored:
        digest, scratch = PinDigest(), memoryview(bytearray(_READ_BYTES))
        length = stored.length_bytes
        head = read_exactly(stored, 0, min(length, MAX_CLEAR_PREFIX_BYTES))
        try:
            tag = parse_clear_prefix(head).floe_header_tag(head)
        except ArtifactFormatError as error:
            raise ArtifactCorrupt(f"this is no artifact, or it is damaged: {error}") from error
        for at in range(0, length, _READ_BYTES):
            part = scratch[: min(_READ_BYTES, length - at)]
            if stored.read_into(at, part) != len(part):
                raise ArtifactCorrupt("the artifact became shorter while it was read")
            digest.update(part)
        return ArtifactPin(length, tag, digest.digest())
