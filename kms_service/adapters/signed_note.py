"""Signed notes (c2sp.org/signed-note): text, a blank line, Ed25519 signatures.

Made so that other tools can check them: `note` of Go's x/mod, sigsum, any C2SP verifier.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_ED25519 = b"\x01"
_PUBLIC_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
MAX_NOTE_BYTES = 1024 * 1024
_MAX_SIGNATURES = 64
_SIGNATURE_LINE = re.compile(r"\u2014 ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_KEY_NAME = re.compile(r"[^\s+]+")


class NoteInvalid(ValueError):
    """No note, or not signed by a key that is trusted."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """Whose signatures count.

    Attributes:
        name: no spaces, no plus.
        public_key: Ed25519, 32 bytes.

    Raises:
        ValueError: the name or the key cannot be one.
    """

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        if not _KEY_NAME.fullmatch(self.name) or len(self.public_key) != _PUBLIC_KEY_BYTES:
            raise ValueError("not the name and public key of an Ed25519 verifier")

    @property
    def id(self) -> bytes:
        """Four bytes."""
        # signed-note, "Ed25519 signatures": SHA-256(key name || 0x0A || 0x01 || public key)[:4]
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:4]

    def __str__(self) -> str:
        # signed-note, "Verifier keys": <key name>+hex(key ID)+base64(signature type || public key)
        encoded = base64.b64encode(_ED25519 + self.public_key).decode()
        return f"{self.name}+{self.id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            ValueError: not an Ed25519 verifier key.
        """
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        try:
            material = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise ValueError("not a verifier key") from error
        if material[:1] != _ED25519:
            raise ValueError("not an Ed25519 verifier key")
        key = cls(name, material[1:])
        if key.id.hex() != key_id:
            raise ValueError("the verifier key's id is not that of its name and key")
        return key


def sealed_note(text: str, key: VerifierKey, signature: bytes) -> bytes:
    """The note of `text` and one signature over it.

    Raises:
        NoteInvalid: the signature is none of this key over this text: whoever made it is not
            trusted to have signed what it was given.
    """
    _require(_is_text(text), "is no text that a note can have")
    _require(_verifies(key, text, signature), "the signature is not one over this text")
    encoded = base64.b64encode(key.id + signature).decode()
    return f"{text}\n\u2014 {key.name} {encoded}\n".encode()


def open_note(note: bytes, keys: Iterable[VerifierKey]) -> str:
    """The text, once a signature of one of `keys` is verified.

    Raises:
        NoteInvalid: it is no note, no known key signed it, or one that claims to did not.
    """
    _require(len(note) <= MAX_NOTE_BYTES, "is longer than a note may be")
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise NoteInvalid("is no UTF-8") from error
    # signed-note, "Format": the text is separated from the signatures by the last empty line.
    text, separator, signatures = whole.rpartition("\n\n")
    text += "\n"
    _require(bool(separator) and _is_text(text) and signatures.endswith("\n"), "is no signed note")
    known = {(key.name, key.id): key for key in keys}
    lines = signatures.removesuffix("\n").split("\n")
    _require(len(lines) <= _MAX_SIGNATURES, "has too many signatures")
    verified = False
    for line in lines:
        match = _SIGNATURE_LINE.fullmatch(line)
        _require(match is not None, "is no signed note")
        assert match is not None
        try:
            blob = base64.b64decode(match[2], validate=True)
        except binascii.Error as error:
            raise NoteInvalid("is no signed note") from error
        key = known.get((match[1], blob[:4]))
        if key is None:  # "Verifiers MUST ignore signatures from unknown keys"
            continue
        _require(_verifies(key, text, blob[4:]), "has a signature that is not its key's")
        verified = True
    _require(verified, "is not signed by a key that is trusted")
    return text


def _is_text(text: str) -> bool:
    """signed-note, "Format": ends in a newline, no other control characters below U+0020."""
    return text.endswith("\n") and all(char >= " " or char == "\n" for char in text)


def _verifies(key: VerifierKey, text: str, signature: bytes) -> bool:
    if len(signature) != _SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, text.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise NoteInvalid(otherwise)
