"""Signed notes, as c2sp.org/signed-note has them."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kms_service.adapters.signed_note import NoteInvalid, VerifierKey, open_note, sealed_note

# c2sp.org/signed-note, "Example".
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXm"
    "RKuwHjG1Yu72IneyaQM=\n"
).encode()
SECRET = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = VerifierKey("kms.example.org/audit", SECRET.public_key().public_bytes_raw())
TEXT = "kms.example.org/audit\n\nLine with ü.\n"


def sealed(text: str = TEXT, key: VerifierKey = KEY) -> bytes:
    return sealed_note(text, key, SECRET.sign(text.encode()))


def test_the_example_of_the_specification() -> None:
    key = VerifierKey.parse(EXAMPLE_KEY)
    assert str(key) == EXAMPLE_KEY
    assert open_note(EXAMPLE_NOTE, [key]) == "This is an example message.\n"


def test_what_was_sealed_is_opened() -> None:
    assert open_note(sealed(), [KEY]) == TEXT
    assert VerifierKey.parse(str(KEY)) == KEY


def test_unknown_signatures_are_ignored_and_known_ones_must_hold() -> None:
    other = "— other.example/key " + base64.b64encode(b"\0" * 68).decode() + "\n"
    assert open_note(sealed() + other.encode(), [KEY]) == TEXT
    forged = f"— {KEY.name} " + base64.b64encode(KEY.id + b"\0" * 64).decode() + "\n"
    with pytest.raises(NoteInvalid, match="not its key's"):
        open_note(sealed() + forged.encode(), [KEY])
    with pytest.raises(NoteInvalid, match="not signed by a key"):
        open_note(sealed(), [VerifierKey.parse(EXAMPLE_KEY)])
    with pytest.raises(NoteInvalid, match="not signed by a key"):
        open_note(sealed(), [])


def test_f62_no_flipped_byte_of_a_note_is_accepted() -> None:
    note = sealed()
    for position in range(len(note)):
        mutated = bytearray(note)
        mutated[position] ^= 0x01
        try:
            opened = open_note(bytes(mutated), [KEY])
        except NoteInvalid:
            continue
        # Only base64's unused last bits mean nothing.
        assert opened == TEXT
        assert base64.b64decode(mutated.rsplit(b" ", 1)[1]) == base64.b64decode(
            note.rsplit(b" ", 1)[1]
        )


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\n",
        b"text\n",
        b"text\n\n",
        sealed()[:-1],
        sealed().replace(b"\xe2\x80\x94", b"-"),
        b"\xff" + sealed(),
        sealed().replace(b"Line", b"L\x07ne"),
        b"x" * (1024 * 1024) + sealed(),
        sealed() + (f"— x {base64.b64encode(bytes(68)).decode()}\n" * 64).encode(),
    ],
)
def test_what_is_no_note(note: bytes) -> None:
    with pytest.raises(NoteInvalid):
        open_note(note, [KEY])


@pytest.mark.parametrize("text", ["no newline", "bell\x07\n", "cr\r\n"])
def test_what_cannot_be_a_text(text: str) -> None:
    with pytest.raises(NoteInvalid, match="no text"):
        sealed(text)


def test_a_signature_over_something_else_is_not_sealed() -> None:
    with pytest.raises(NoteInvalid, match="not one over this text"):
        sealed_note(TEXT, KEY, SECRET.sign(b"else"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        EXAMPLE_KEY.replace("530d903a", "530d903b"),
        EXAMPLE_KEY.replace("foo", "bar"),
        EXAMPLE_KEY.replace("+Ae", "+Be"),
        EXAMPLE_KEY[:-1],
        EXAMPLE_KEY.replace("example.com/foo", "a b"),
    ],
)
def test_what_is_no_verifier_key(text: str) -> None:
    with pytest.raises(ValueError):
        VerifierKey.parse(text)
