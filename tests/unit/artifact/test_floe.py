"""FLOE against its known answers, and against every way a ciphertext can be changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelkms.artifact import floe
from modelkms.artifact.buffers import FreshBytes
from modelkms.artifact.floe import Body, Decryptor, Encryptor
from modelkms.errors import ArtifactCorrupt

VECTORS = Path(__file__).parents[2] / "vectors" / "floe"
NAMES = sorted(path.name.removesuffix("_ct.txt") for path in VECTORS.glob("*_ct.txt"))
KEY, AAD = bytes(32), b"This is AAD"
SEGMENT = 40
"""Eight bytes of plaintext in each segment."""
CAPACITY = SEGMENT - 32


def vector(name: str) -> tuple[bytes, bytes, int]:
    """Ciphertext, plaintext, rotation mask."""
    ciphertext, plaintext = (
        bytes.fromhex((VECTORS / f"{name}_{kind}.txt").read_text()) for kind in ("ct", "pt")
    )
    return ciphertext, plaintext, 2 if "rotation" in name else 20


def test_all_vectors_are_there() -> None:
    assert len(NAMES) == 9


# --- known answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_known_answer_whole(name: str) -> None:
    ciphertext, plaintext, mask = vector(name)

    assert floe.decrypt(KEY, ciphertext, AAD, _rotation_mask=mask) == plaintext


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_known_answer_by_random_access(name: str, order: str) -> None:
    ciphertext, plaintext, mask = vector(name)
    decryptor = Decryptor(KEY, AAD, ciphertext[:74], rotation_mask=mask)
    segments = memoryview(ciphertext)[74:]
    body = Body.of(len(segments), decryptor.segment_length)
    assert body.plain_bytes == len(plaintext)
    positions = list(range(body.segments))
    if order != "forwards":
        positions.reverse() if order == "backwards" else random.Random(7).shuffle(positions)

    for position in positions:
        out = bytearray(len(segments[body.encrypted(position)]) - 32)
        decryptor.decrypt_into(
            position, body.is_last(position), segments[body.encrypted(position)], memoryview(out)
        )
        assert out == plaintext[body.plain(position)]


@pytest.mark.parametrize("name", [name for name in NAMES if "rotation" in name])
def test_the_rotation_mask_matters(name: str) -> None:
    ciphertext, _, _ = vector(name)

    with pytest.raises(ArtifactCorrupt):
        floe.decrypt(KEY, ciphertext, AAD)


@pytest.mark.parametrize("mask", [0, 1, 2, 20])
def test_what_is_encrypted_under_any_rotation_is_decrypted(mask: int) -> None:
    plaintext = bytes(range(200))

    ciphertext = floe.encrypt(KEY, plaintext, AAD, SEGMENT, _rotation_mask=mask)

    assert floe.decrypt(KEY, ciphertext, AAD, _rotation_mask=mask) == plaintext


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment_length", [33, SEGMENT, 64, 4096])
@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("segments", [0, 1, 2, 5])
def test_boundary_sizes(segment_length: int, offset: int, segments: int) -> None:
    size = max(0, segments * (segment_length - 32) + offset)
    plaintext = random.Random(size).randbytes(size)

    ciphertext = floe.encrypt(KEY, plaintext, AAD, segment_length)

    expected_segments = max(1, -(-size // (segment_length - 32)))
    assert len(ciphertext) == 74 + size + 32 * expected_segments
    assert floe.decrypt(KEY, ciphertext, AAD) == plaintext


@given(st.binary(max_size=300), st.binary(max_size=40), st.integers(33, 100))
def test_round_trip(plaintext: bytes, aad: bytes, segment_length: int) -> None:
    assert floe.decrypt(KEY, floe.encrypt(KEY, plaintext, aad, segment_length), aad) == plaintext


def test_a_plaintext_is_never_encrypted_to_the_same_bytes() -> None:
    assert floe.encrypt(KEY, b"same", AAD) != floe.encrypt(KEY, b"same", AAD)


def test_the_default_segment_is_256_kib() -> None:
    assert floe.encrypt(KEY, b"", AAD)[:10] == bytes.fromhex("00000004000000000020")


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_has_32_bytes(key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        floe.encrypt(key, b"", AAD)
    with pytest.raises(ValueError, match="32 bytes"):
        floe.decrypt(key, floe.encrypt(KEY, b"", AAD), AAD)


@pytest.mark.parametrize("segment_length", [-1, 0, 32, (1 << 32) - 1])
def test_a_segment_has_room_and_bounds(segment_length: int) -> None:
    with pytest.raises(ValueError, match="segment length"):
        floe.encrypt(KEY, b"", AAD, segment_length)


# --- damage --------------------------------------------------------------------------------------

PLAINTEXT = bytes(range(3 * CAPACITY + 5))


@pytest.fixture(scope="module")
def ciphertext() -> bytes:
    return floe.encrypt(KEY, PLAINTEXT, AAD, SEGMENT)


def segments_of(ciphertext: bytes) -> list[bytes]:
    return [ciphertext[at : at + SEGMENT] for at in range(74, len(ciphertext), SEGMENT)]


def damaged(ciphertext: bytes) -> Iterator[tuple[str, bytes]]:
    for at in range(len(ciphertext)):
        for bit in (1, 0x80):
            flipped = ciphertext[at] ^ bit
            yield f"byte {at}", ciphertext[:at] + bytes([flipped]) + ciphertext[at + 1 :]
    for length in range(len(ciphertext)):
        yield f"cut to {length}", ciphertext[:length]
    for extra in (1, 4, 31, 32, SEGMENT):
        yield f"{extra} zeros appended", ciphertext + bytes(extra)


def test_f43_any_change_of_a_ciphertext_is_found(ciphertext: bytes) -> None:
    for what, changed in damaged(ciphertext):
        with pytest.raises(ArtifactCorrupt):
            pytest.fail(f"{what}: {floe.decrypt(KEY, changed, AAD)!r}")


def test_f44_segments_missing_swapped_duplicated_spliced(ciphertext: bytes) -> None:
    header, (a, b, c, last) = ciphertext[:74], segments_of(ciphertext)
    other = floe.encrypt(KEY, PLAINTEXT, AAD, SEGMENT)
    x, y, z, other_last = segments_of(other)
    shorter = segments_of(floe.encrypt(KEY, PLAINTEXT[:CAPACITY], AAD, SEGMENT))

    for segments in (
        [b, a, c, last],
        [a, b, b, last],
        [a, c, last],
        [b, c, last],
        [a, b, c],
        [a, b, c, c, last],
        [last],
        [a, b, c, last, last],
        [x, b, c, last],
        [a, b, z, last],
        [a, b, c, other_last],
        [x, y, z, other_last],
        shorter,
    ):
        with pytest.raises(ArtifactCorrupt):
            floe.decrypt(KEY, header + b"".join(segments), AAD)
    assert floe.decrypt(KEY, header + a + b + c + last, AAD) == PLAINTEXT


def test_f44_an_internal_segment_is_no_last_one(ciphertext: bytes) -> None:
    """Nor with its length field made to say so: the field is checked by the associated data."""
    header, (a, b, _, _) = ciphertext[:74], segments_of(ciphertext)
    claimed = SEGMENT.to_bytes(4, "big") + b[4:]

    with pytest.raises(ArtifactCorrupt, match="segment 1 "):
        floe.decrypt(KEY, header + a + claimed, AAD)


def test_f44_another_key_does_not_fit_the_header(ciphertext: bytes) -> None:
    for changed in (bytes(31) + b"\1", b"\1" + bytes(31)):
        with pytest.raises(ArtifactCorrupt, match="made with another key"):
            floe.decrypt(changed, ciphertext, AAD)
    for aad in (b"", AAD + b"\0", AAD[:-1]):
        with pytest.raises(ArtifactCorrupt, match="does not authenticate"):
            floe.decrypt(KEY, ciphertext, aad)


@pytest.mark.parametrize("at", [0, 1, 2, 5, 6, 9])
def test_f44_other_parameters_are_refused(ciphertext: bytes, at: int) -> None:
    changed = bytearray(ciphertext)
    changed[at] ^= 0x40

    with pytest.raises(ArtifactCorrupt):
        floe.decrypt(KEY, changed, AAD)


def test_f47_what_does_not_verify_is_wiped() -> None:
    encryptor = Encryptor(KEY, AAD, SEGMENT)
    segment, out = bytearray(SEGMENT), bytearray(b"\xaa" * CAPACITY)
    encryptor.encrypt_into(0, False, memoryview(b"plaintxt"), memoryview(segment))
    segment[-1] ^= 1
    decryptor = Decryptor(KEY, AAD, encryptor.header)

    with pytest.raises(ArtifactCorrupt) as caught:
        decryptor.decrypt_into(0, False, memoryview(segment), memoryview(out))

    assert out == bytes(CAPACITY)
    assert caught.value.metadata == {"segment": "0"}
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_f47_a_whole_buffer_is_wiped_at_the_first_bad_segment(
    ciphertext: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wiped: list[bytes] = []

    class Watched(FreshBytes):
        def wipe(self) -> None:
            super().wipe()
            wiped.append(bytes(self.view))

    monkeypatch.setattr(floe, "FreshBytes", Watched)
    changed = bytearray(ciphertext)
    changed[74 + 2 * SEGMENT + 20] ^= 1

    with pytest.raises(ArtifactCorrupt, match="segment 2 "):
        floe.decrypt(KEY, changed, AAD)

    assert wiped == [bytes(len(PLAINTEXT))]


# --- layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body_bytes", [0, 1, 31, SEGMENT + 1, SEGMENT + 31, 2 * SEGMENT + 31])
def test_no_body_has_this_length(body_bytes: int) -> None:
    with pytest.raises(ArtifactCorrupt, match="no last segment"):
        Body.of(body_bytes, SEGMENT)


@given(st.integers(0, 10_000), st.integers(33, 200))
def test_a_body_is_divided_the_same_way_by_writer_and_reader(plain: int, segment: int) -> None:
    body = Body.for_plaintext(plain, segment)

    assert Body.of(body.body_bytes, segment) == body
    assert body.plain_bytes == plain
    assert body.plain(body.last).stop == plain
    assert body.encrypted(body.last).stop == body.body_bytes
