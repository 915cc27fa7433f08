"""Layout of an artifact file (docs/spec/artifact-v1.md): what stands in clear, and the pin.

The service checks a stored object by it, the client reads and writes by it. No key is needed here
and no cryptography but SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE, PAYLOAD_KIND_ZIP, ArtifactHeader

MAGIC = b"\x89MKMS\r\n\x1a"
"""Eight bytes that no text transfer leaves as they are (artifact-v1 §3.1)."""
FORMAT_VERSION = 1

FIXED_PREFIX_BYTES = 16
"""Magic, format version (u32) and header length (u32), before the header."""
MAX_HEADER_BYTES = 4096

FLOE_PARAMETERS_BYTES = 10
FLOE_IV_BYTES = 32
FLOE_HEADER_TAG_BYTES = 32
FLOE_HEADER_TAG_OFFSET = FLOE_PARAMETERS_BYTES + FLOE_IV_BYTES
"""Of the header tag in the FLOE header."""
FLOE_HEADER_BYTES = FLOE_HEADER_TAG_OFFSET + FLOE_HEADER_TAG_BYTES
"""74: parameters, IV, header tag (c2sp.org/FLOE, ciphertext layout)."""

MAX_CLEAR_PREFIX_BYTES = FIXED_PREFIX_BYTES + MAX_HEADER_BYTES + FLOE_HEADER_BYTES
"""So many bytes from the start of the file hold all that stands in clear."""

SEGMENT_OVERHEAD_BYTES = 32
"""Of each FLOE segment: length field 4, AES-GCM nonce 12, tag 16."""
MIN_SEGMENT_BYTES = 4096
MAX_SEGMENT_BYTES = 16 << 20
DEFAULT_SEGMENT_BYTES = 256 << 10
"""Encrypted segments, their overhead included (DESIGN §6: data-plane layout)."""

MAX_FILE_NAME_BYTES = 255

PIN_PIECE_BYTES = 8 << 20
"""The pin's digest is over the digests of so large pieces of the file (artifact-v1 §6)."""
PIN_DIGEST_BYTES = 32

_ID = "[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_VERSION = re.compile(f"projects/{_ID}/models/{_ID}/versions/[1-9][0-9]{{0,8}}")
_HEX128 = re.compile("[0-9a-f]{32}")
_BAD_IN_NAME = re.compile(r"[\x00-\x1f\x7f/\\]")
_DRIVE = re.compile("[A-Za-z]:")


class ArtifactFormatError(Exception):
    """The bytes are not the beginning of an artifact of this format. The message names the fault
    and repeats nothing of the bytes."""


@dataclass(frozen=True, slots=True)
class ClearPrefix:
    """What stands in clear before the FLOE payload.

    Attributes:
        header: parsed and checked.
        header_bytes: its exact encoding, at most 4,096 bytes: FLOE's associated data.
        payload_offset: where the FLOE header begins in the file.
    """

    header: ArtifactHeader
    header_bytes: bytes
    payload_offset: int

    @property
    def segments_offset(self) -> int:
        """Where the first FLOE segment begins in the file."""
        return self.payload_offset + FLOE_HEADER_BYTES

    def floe_header(self, prefix: bytes) -> bytes:
        """The 74 bytes of the FLOE header, out of the `prefix` this was parsed from."""
        return bytes(prefix[self.payload_offset : self.segments_offset])

    def floe_header_tag(self, prefix: bytes) -> bytes:
        """The 32 bytes of the FLOE header tag, out of the `prefix` this was parsed from."""
        return self.floe_header(prefix)[FLOE_HEADER_TAG_OFFSET:]


def clear_prefix(header: ArtifactHeader) -> bytes:
    """The bytes before the FLOE header.

    Raises:
        ArtifactFormatError: a field of `header` breaks artifact-v1 §3.3.
    """
    _check_fields(header)
    encoded = _canonical(header)
    if len(encoded) > MAX_HEADER_BYTES:
        raise ArtifactFormatError("the header is too long")
    return b"".join((MAGIC, _u32(FORMAT_VERSION), _u32(len(encoded)), encoded))


def parse_clear_prefix(prefix: bytes) -> ClearPrefix:
    """Parse and check what stands in clear, the FLOE header's parameters included.

    Args:
        prefix: the file from its start: its first `MAX_CLEAR_PREFIX_BYTES`, or all of a shorter
            one.

    Raises:
        ArtifactFormatError: `prefix` breaks artifact-v1 §3 or ends before the FLOE header does.
    """
    # artifact-v1 §3.1: magic, version and length come first; nothing else is looked at before.
    if len(prefix) < FIXED_PREFIX_BYTES:
        raise ArtifactFormatError("too short for an artifact")
    if prefix[:8] != MAGIC:
        raise ArtifactFormatError("not an artifact: the magic bytes are others")
    if int.from_bytes(prefix[8:12], "big") != FORMAT_VERSION:
        raise ArtifactFormatError("an artifact of another format version")
    header_length = int.from_bytes(prefix[12:16], "big")
    if not 0 < header_length <= MAX_HEADER_BYTES:
        raise ArtifactFormatError("the header length is out of bounds")
    payload_offset = FIXED_PREFIX_BYTES + header_length
    if len(prefix) < payload_offset + FLOE_HEADER_BYTES:
        raise ArtifactFormatError("ends within its header")

    header_bytes = bytes(prefix[FIXED_PREFIX_BYTES:payload_offset])
    header = ArtifactHeader()
    try:
        header.ParseFromString(header_bytes)
    except DecodeError:
        raise ArtifactFormatError("the header is malformed") from None
    # artifact-v1 §3.2: one encoding for each header. This also refuses unknown and repeated
    # fields, fields out of order and over-long integers.
    if _canonical(header) != header_bytes:
        raise ArtifactFormatError("the header is not in its canonical encoding")
    _check_fields(header)

    # artifact-v1 §4.1: the FLOE parameters are those of the header, and no others.
    parameters = bytes(prefix[payload_offset : payload_offset + FLOE_PARAMETERS_BYTES])
    if parameters != floe_parameters(header.segment_length_bytes):
        raise ArtifactFormatError("the FLOE parameters are not those of the header")
    return ClearPrefix(header, header_bytes, payload_offset)


def floe_parameters(segment_length_bytes: int) -> bytes:
    """c2sp.org/FLOE: `PARAM_ENCODE(params)` is
    `I2BE(AEAD_ID, 1) || I2BE(KDF_ID, 1) || I2BE(ENC_SEG_LEN, 4) || I2BE(FLOE_IV_LEN, 4)`."""
    return b"\0\0" + _u32(segment_length_bytes) + _u32(FLOE_IV_BYTES)


def name_fault(name: str) -> str | None:
    """What is wrong with the name of a file or folder, without any path; None: nothing.

    artifact-v1 §3.4: a name is safe on every system that a reader may write it to.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not encoded:
        return "is empty"
    if len(encoded) > MAX_FILE_NAME_BYTES:
        return f"is longer than {MAX_FILE_NAME_BYTES} bytes"
    if name in (".", ".."):
        return "is a way out of the folder"
    if _BAD_IN_NAME.search(name):
        return "has a control character, slash or backslash"
    if _DRIVE.match(name):
        return "begins like a drive"
    return None


class PinDigest:
    """The pin's digest, incrementally: SHA-256 over the SHA-256 digests of the file's pieces of
    8 MiB, the last one shorter (artifact-v1 §6). An empty file has no pieces."""

    def __init__(self) -> None:
        self._outer = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._room = PIN_PIECE_BYTES
        self.length_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add the file's next bytes."""
        view = memoryview(data).cast("B")
        self.length_bytes += len(view)
        while view:
            part, view = view[: self._room], view[self._room :]
            self._piece.update(part)
            self._room -= len(part)
            if self._room == 0:
                self._outer.update(self._piece.digest())
                self._piece = hashlib.sha256()
                self._room = PIN_PIECE_BYTES

    def digest(self) -> bytes:
        """32 bytes. The object can be updated further."""
        outer = self._outer.copy()
        if self._room < PIN_PIECE_BYTES:
            outer.update(self._piece.digest())
        return outer.digest()


def _check_fields(header: ArtifactHeader) -> None:
    """artifact-v1 §3.3."""
    if _VERSION.fullmatch(header.version) is None:
        raise ArtifactFormatError("the header's version name is malformed")
    if _HEX128.fullmatch(header.version_uid) is None:
        raise ArtifactFormatError("the header's version uid is malformed")
    if _HEX128.fullmatch(header.artifact_id) is None:
        raise ArtifactFormatError("the header's artifact id is malformed")
    if not MIN_SEGMENT_BYTES <= header.segment_length_bytes <= MAX_SEGMENT_BYTES:
        raise ArtifactFormatError("the header's segment length is out of bounds")
    if header.payload_kind == PAYLOAD_KIND_FILE:
        if fault := name_fault(header.file_name):
            raise ArtifactFormatError(f"the header's file name {fault}")
    elif header.payload_kind == PAYLOAD_KIND_ZIP:
        if header.file_name:
            raise ArtifactFormatError("the header of a folder has a file name")
    else:
        raise ArtifactFormatError("the header's payload kind is unknown")


def _canonical(header: ArtifactHeader) -> bytes:
    """Known fields only, by ascending number, shortest integers: the one encoding."""
    known = ArtifactHeader()
    known.CopyFrom(header)
    known.DiscardUnknownFields()
    return known.SerializeToString(deterministic=True)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")
