"""FLOE, Fast Lightweight Online Encryption (c2sp.org/FLOE): AES-256-GCM and HKDF-Expand-SHA-384.

Key-committing, segments in any order, the end authenticated. `encrypt` and `decrypt` are for whole
buffers. `Encryptor` and `Decryptor` work on single segments and are what writer and reader are
built of: whoever uses them sees to it that each position is encrypted once and that the last
segment is authenticated before any other is trusted (the specification: "these API should likely
not be exposed directly to developers").

    ciphertext := parameters (10) | IV (32) | header tag (32) | segment … | last segment
    segment    := length (4) | AES-GCM nonce (12) | AES-GCM ciphertext | AES-GCM tag (16)
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from modelkms_api.artifact import (
    DEFAULT_SEGMENT_BYTES,
    FLOE_HEADER_BYTES,
    FLOE_HEADER_TAG_BYTES,
    FLOE_HEADER_TAG_OFFSET,
    FLOE_IV_BYTES,
    FLOE_PARAMETERS_BYTES,
    SEGMENT_OVERHEAD_BYTES,
    floe_parameters,
)

from modelkms.artifact.buffers import FreshBytes
from modelkms.errors import ArtifactCorrupt

KEY_BYTES = 32
"""AEAD_KEY_LEN."""
MAX_SEGMENTS = 1 << 40
"""AEAD_MAX_SEGMENTS."""

_ROTATION_MASK = 20
"""AEAD_ROTATION_MASK: 2^20 segments are encrypted under one AES-GCM key."""
_MESSAGE_KEY_BYTES = 48
"""KDF_KEY_LEN."""
_LENGTH_BYTES, _NONCE_BYTES, _TAG_BYTES = 4, 12, 16
_TEXT_OFFSET = _LENGTH_BYTES + _NONCE_BYTES
_INTERNAL = b"\xff\xff\xff\xff"
"""Length field of all segments but the last."""
_MAX_SEGMENT_BYTES = (1 << 32) - 2


# --- whole buffers -------------------------------------------------------------------------------


def encrypt(
    key: bytes,
    plaintext: bytes | bytearray | memoryview,
    aad: bytes,
    segment_length: int = DEFAULT_SEGMENT_BYTES,
    *,
    _rotation_mask: int = _ROTATION_MASK,
) -> bytes:
    """Encrypt a whole buffer. Each call gives another ciphertext: the IV is random.

    Args:
        key: 32 bytes.
        segment_length: of an encrypted segment in bytes, its 32 bytes of overhead included.

    Raises:
        ValueError: the key is not 32 bytes, or the segment length does not fit.
    """
    encryptor = Encryptor(key, aad, segment_length, rotation_mask=_rotation_mask)
    source = memoryview(plaintext).cast("B")
    body = Body.for_plaintext(len(source), segment_length)
    result = FreshBytes(FLOE_HEADER_BYTES + body.body_bytes)
    result.view[:FLOE_HEADER_BYTES] = encryptor.header
    out = result.view[FLOE_HEADER_BYTES:]
    for position in range(body.segments):
        encryptor.encrypt_into(
            position,
            body.is_last(position),
            source[body.plain(position)],
            out[body.encrypted(position)],
        )
    out.release()
    return result.take()


def decrypt(
    key: bytes,
    ciphertext: bytes | bytearray | memoryview,
    aad: bytes,
    *,
    _rotation_mask: int = _ROTATION_MASK,
) -> bytes:
    """Decrypt a whole buffer: all of it or nothing.

    Args:
        key: 32 bytes.

    Raises:
        ArtifactCorrupt: it was not made with this key and `aad`, or was changed in any way. What
            was decrypted up to there is wiped.
        ValueError: the key is not 32 bytes.
    """
    source = memoryview(ciphertext).cast("B")
    decryptor = Decryptor(key, aad, bytes(source[:FLOE_HEADER_BYTES]), rotation_mask=_rotation_mask)
    segments = source[FLOE_HEADER_BYTES:]
    body = Body.of(len(segments), decryptor.segment_length)
    result = FreshBytes(body.plain_bytes)
    try:
        # The last segment first: without it the length of the whole is a mere claim.
        for position in (body.last, *range(body.last)):
            decryptor.decrypt_into(
                position,
                body.is_last(position),
                segments[body.encrypted(position)],
                result.view[body.plain(position)],
            )
    except BaseException:
        result.wipe()
        raise
    return result.take()


# --- where segments lie --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Body:
    """FLOE_BODY: "zero or more internal segments and a single final segment".

    Attributes:
        segment_length: ENC_SEG_LEN, in bytes; of every segment but the last.
        segments: how many, the last included.
        body_bytes: of all segments together.
    """

    segment_length: int
    segments: int
    body_bytes: int

    @classmethod
    def of(cls, body_bytes: int, segment_length: int) -> Body:
        """How a ciphertext body of this length is divided.

        Raises:
            ArtifactCorrupt: no FLOE body has this length.
        """
        segments = -(-body_bytes // segment_length)
        last = body_bytes - (segments - 1) * segment_length
        if segments < 1 or segments > MAX_SEGMENTS or last < SEGMENT_OVERHEAD_BYTES:
            raise ArtifactCorrupt("the artifact is cut short or extended: it has no last segment")
        return cls(segment_length, segments, body_bytes)

    @classmethod
    def for_plaintext(cls, plain_bytes: int, segment_length: int) -> Body:
        """How a plaintext of this length is to be encrypted; an empty one has one empty segment.

        Raises:
            ValueError: it is too long for segments of this length.
        """
        capacity = segment_length - SEGMENT_OVERHEAD_BYTES
        segments = max(1, -(-plain_bytes // capacity))
        if segments > MAX_SEGMENTS:
            raise ValueError("too long for segments of this length")
        return cls(segment_length, segments, plain_bytes + segments * SEGMENT_OVERHEAD_BYTES)

    @property
    def last(self) -> int:
        """Position of the last segment, from 0."""
        return self.segments - 1

    @property
    def capacity(self) -> int:
        """Plaintext bytes in every segment but the last."""
        return self.segment_length - SEGMENT_OVERHEAD_BYTES

    @property
    def plain_bytes(self) -> int:
        """Plaintext bytes of all segments together."""
        return self.body_bytes - self.segments * SEGMENT_OVERHEAD_BYTES

    def is_last(self, position: int) -> bool:
        return position == self.last

    def encrypted(self, position: int) -> slice:
        """Where a segment lies in the body."""
        start = position * self.segment_length
        return slice(start, min(start + self.segment_length, self.body_bytes))

    def plain(self, position: int) -> slice:
        """Where a segment's plaintext lies in the whole."""
        start = position * self.capacity
        return slice(start, min(start + self.capacity, self.plain_bytes))


# --- single segments -----------------------------------------------------------------------------


class Encryptor:
    """Encrypts the segments of one message. Safe to use from several threads.

    Attributes:
        header: FLOE_HEADER, 74 bytes.
    """

    def __init__(
        self, key: bytes, aad: bytes, segment_length: int, *, rotation_mask: int = _ROTATION_MASK
    ) -> None:
        """`startEncryption`, with a random IV. `rotation_mask` is for known answers only.

        Raises:
            ValueError: the key is not 32 bytes, or the segment length does not fit.
        """
        _check_key(key)
        if not SEGMENT_OVERHEAD_BYTES < segment_length <= _MAX_SEGMENT_BYTES:
            raise ValueError("the segment length is out of bounds")
        parameters, iv = floe_parameters(segment_length), os.urandom(FLOE_IV_BYTES)
        self._keys = _Keys(key, parameters, iv, aad, rotation_mask)
        self._segment_length = segment_length
        self.header = parameters + iv + self._keys.header_tag

    def encrypt_into(
        self, position: int, is_last: bool, plaintext: memoryview, out: memoryview
    ) -> None:
        """`encryptSegment`: `out` has exactly 32 bytes more than `plaintext`."""
        assert len(out) == len(plaintext) + SEGMENT_OVERHEAD_BYTES
        assert len(out) <= self._segment_length if is_last else len(out) == self._segment_length
        # "This value is max (0xFFFFFFFF) for all non-final segments and is the total encrypted
        # segment length of the last segment."
        out[:_LENGTH_BYTES] = len(out).to_bytes(4, "big") if is_last else _INTERNAL
        # A random nonce for each segment; after 2^20 segments comes another key, so nonces of one
        # key collide with a probability below 2^-57.
        nonce = os.urandom(_NONCE_BYTES)
        out[_LENGTH_BYTES:_TEXT_OFFSET] = nonce
        self._keys.aead(position).encrypt_into(
            nonce, plaintext, _segment_aad(position, is_last), out[_TEXT_OFFSET:]
        )


class Decryptor:
    """Decrypts the segments of one message. Safe to use from several threads.

    Attributes:
        segment_length: as the header tells it, in bytes.
    """

    def __init__(
        self, key: bytes, aad: bytes, header: bytes, *, rotation_mask: int = _ROTATION_MASK
    ) -> None:
        """`startDecryption`: the header is authenticated under key and `aad`.

        Raises:
            ArtifactCorrupt: it is no FLOE header of known parameters, or was not made with this
                key and `aad`.
            ValueError: the key is not 32 bytes.
        """
        _check_key(key)
        if len(header) != FLOE_HEADER_BYTES:
            raise ArtifactCorrupt("the artifact is cut short within its header")
        parameters = header[:FLOE_PARAMETERS_BYTES]
        segment_length = int.from_bytes(parameters[2:6], "big")
        if (
            parameters != floe_parameters(segment_length)
            or not SEGMENT_OVERHEAD_BYTES < segment_length <= _MAX_SEGMENT_BYTES
        ):
            raise ArtifactCorrupt("the artifact's encryption parameters are unknown")
        iv = header[FLOE_PARAMETERS_BYTES:FLOE_HEADER_TAG_OFFSET]
        keys = _Keys(key, parameters, iv, aad, rotation_mask)
        # "Must be constant time". Where the tag fits, the key is the one it was made with: FLOE
        # commits to it (F44).
        if not hmac.compare_digest(keys.header_tag, header[FLOE_HEADER_TAG_OFFSET:]):
            raise ArtifactCorrupt(
                "the artifact's header does not authenticate: it was changed, or made with another "
                "key"
            )
        self._keys = keys
        self.segment_length = segment_length

    def decrypt_into(
        self, position: int, is_last: bool, segment: memoryview, out: memoryview
    ) -> None:
        """`decryptSegment`: `out` has exactly 32 bytes less than `segment`.

        `out` must be nobody's but the caller's until this returns: AES-GCM is written to it before
        it is verified (F47). If it does not verify, `out` is wiped.

        Raises:
            ArtifactCorrupt: the segment does not authenticate at this position.
        """
        assert len(segment) == len(out) + SEGMENT_OVERHEAD_BYTES
        assert (
            len(segment) <= self.segment_length if is_last else len(segment) == self.segment_length
        )
        length = len(segment).to_bytes(4, "big") if is_last else _INTERNAL
        if segment[:_LENGTH_BYTES] != length:
            raise _corrupt(position)
        try:
            self._keys.aead(position).decrypt_into(
                segment[_LENGTH_BYTES:_TEXT_OFFSET],
                segment[_TEXT_OFFSET:],
                _segment_aad(position, is_last),
                out,
            )
        except InvalidTag:
            out[:] = bytes(len(out))
            raise _corrupt(position) from None


class _Keys:
    """FLOE_KDF for one message, and its AES-GCM keys by position."""

    def __init__(
        self, key: bytes, parameters: bytes, iv: bytes, aad: bytes, rotation_mask: int
    ) -> None:
        self._context = parameters + iv
        self._aad = aad
        self._rotation_mask = rotation_mask
        self.header_tag = self._derive(key, b"HEADER_TAG:", FLOE_HEADER_TAG_BYTES)
        self._message_key = self._derive(key, b"MESSAGE_KEY:", _MESSAGE_KEY_BYTES)
        self._newest = (-1, AESGCM(bytes(KEY_BYTES)))

    def aead(self, position: int) -> AESGCM:
        """`DERIVE_KEY`. "This value may be internally cached by implementations": the newest is, as
        one tuple, so that threads see a position with its own key."""
        masked = position >> self._rotation_mask << self._rotation_mask
        at, aead = self._newest
        if at != masked:
            purpose = b"DEK:" + masked.to_bytes(8, "big")
            aead = AESGCM(self._derive(self._message_key, purpose, KEY_BYTES))
            self._newest = (masked, aead)
        return aead

    def _derive(self, key: bytes, purpose: bytes, length: int) -> bytes:
        # FLOE_KDF: `KDF(key, PARAM_ENCODE(params) || iv || purpose || aad, len)`.
        info = self._context + purpose + self._aad
        return HKDFExpand(SHA384(), length, info).derive(key)


def _segment_aad(position: int, is_last: bool) -> bytes:
    # `aead_aad = I2BE(position, 8) || aad_tail`
    return position.to_bytes(8, "big") + (b"\1" if is_last else b"\0")


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a FLOE key has {KEY_BYTES} bytes")


def _corrupt(position: int) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"segment {position} of the artifact does not authenticate",
        metadata={"segment": str(position)},
    )
