"""What stands in clear, and the pin (artifact-v1 §3, §6)."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelkms_api import artifact as layout
from modelkms_api.artifact import (
    ArtifactFormatError,
    ClearPrefix,
    PinDigest,
    clear_prefix,
    floe_parameters,
    parse_clear_prefix,
)
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_ZIP, ArtifactHeader, PayloadKind

UID, ARTIFACT_ID = "0f" * 16, "a1" * 16
VERSION = "projects/camera/models/face-detector/versions/3"


def header(**changes: object) -> ArtifactHeader:
    fields: dict[str, object] = {
        "version": VERSION,
        "version_uid": UID,
        "artifact_id": ARTIFACT_ID,
        "payload_kind": PayloadKind.PAYLOAD_KIND_FILE,
        "segment_length_bytes": layout.MIN_SEGMENT_BYTES,
        "file_name": "model.onnx",
    }
    return ArtifactHeader(**(fields | changes))  # type: ignore[arg-type]  # wrong on purpose, too


def whole(clear: bytes, segment_length_bytes: int = layout.MIN_SEGMENT_BYTES) -> bytes:
    return clear + floe_parameters(segment_length_bytes) + b"i" * 32 + b"t" * 32


def with_header_bytes(encoded: bytes) -> bytes:
    length = len(encoded).to_bytes(4, "big")
    return whole(layout.MAGIC + b"\0\0\0\1" + length + encoded)


def refusal(prefix: bytes) -> str:
    with pytest.raises(ArtifactFormatError) as caught:
        parse_clear_prefix(prefix)
    return str(caught.value)


def test_what_is_written_is_read() -> None:
    made = header()
    prefix = whole(clear_prefix(made))
    encoded = made.SerializeToString(deterministic=True)

    read = parse_clear_prefix(prefix + b"more")

    assert read == ClearPrefix(made, encoded, 16 + len(encoded))
    assert prefix[:16] == b"\x89MKMS\r\n\x1a\0\0\0\1" + len(encoded).to_bytes(4, "big")
    assert read.segments_offset == len(prefix)
    assert read.floe_header(prefix) == prefix[-74:]
    assert read.floe_header_tag(prefix) == b"t" * 32


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": ""}, "version name"),
        ({"version": "projects/camera/models/fd"}, "version name"),
        ({"version": VERSION + "\n"}, "version name"),
        ({"version": "projects/camera/models/fd/versions/03"}, "version name"),
        ({"version": "projects/Camera/models/fd/versions/3"}, "version name"),
        ({"version_uid": UID.upper()}, "version uid"),
        ({"version_uid": UID[1:]}, "version uid"),
        ({"artifact_id": ""}, "artifact id"),
        ({"artifact_id": ARTIFACT_ID + "0"}, "artifact id"),
        ({"payload_kind": PayloadKind.PAYLOAD_KIND_UNSPECIFIED}, "payload kind"),
        ({"payload_kind": 3}, "payload kind"),
        ({"payload_kind": PAYLOAD_KIND_ZIP}, "a folder has a file name"),
        ({"segment_length_bytes": 4095}, "segment length"),
        ({"segment_length_bytes": (16 << 20) + 1}, "segment length"),
        ({"file_name": ""}, "is empty"),
        ({"file_name": ".."}, "way out"),
        ({"file_name": "a/b"}, "slash"),
        ({"file_name": "a\\b"}, "slash"),
        ({"file_name": "a\0"}, "control"),
        ({"file_name": "C:model"}, "drive"),
        ({"file_name": "é" * 128}, "longer"),
    ],
)
def test_a_wrong_field_is_refused_by_writer_and_reader(
    changes: dict[str, object], fault: str
) -> None:
    bad = header(**changes)

    with pytest.raises(ArtifactFormatError, match=fault):
        clear_prefix(bad)
    assert fault in refusal(with_header_bytes(bad.SerializeToString(deterministic=True)))


def test_the_magic_the_version_and_the_length_are_checked_first() -> None:
    prefix = whole(clear_prefix(header()))

    assert refusal(b"") == refusal(prefix[:15]) == "too short for an artifact"
    assert "magic" in refusal(b"\n" + prefix)
    assert "format version" in refusal(prefix[:8] + b"\0\0\0\2" + prefix[12:])
    assert "length" in refusal(prefix[:12] + bytes(4) + prefix[16:])
    assert "length" in refusal(prefix[:12] + (4097).to_bytes(4, "big") + prefix[16:] + bytes(5000))
    assert refusal(prefix[:-1]) == "ends within its header"


def test_there_is_one_encoding_of_a_header() -> None:
    encoded = header().SerializeToString(deterministic=True)
    number = encoded.index(b"\x20\x01")

    for other in (
        encoded + b"\x38\x01",  # an unknown field
        encoded + encoded,  # every field twice
        encoded[number:] + encoded[:number],  # another order
        encoded.replace(b"\x20\x01", b"\x20\x81\x00"),  # an over-long integer
    ):
        assert refusal(with_header_bytes(other)) == "the header is not in its canonical encoding"
    assert refusal(with_header_bytes(b"\xff")) == "the header is malformed"


def test_floe_parameters_are_those_of_the_header() -> None:
    clear = clear_prefix(header())

    assert floe_parameters(64) == bytes.fromhex("00000000004000000020")
    assert "FLOE parameters" in refusal(whole(clear, 8192))
    assert "FLOE parameters" in refusal(clear + b"\1" + whole(clear)[len(clear) + 1 :])


@given(st.binary(max_size=300))
def test_any_bytes_give_a_header_or_the_one_error(data: bytes) -> None:
    for prefix in (data, with_header_bytes(data)):
        try:
            read = parse_clear_prefix(prefix)
        except ArtifactFormatError:
            continue
        assert whole(clear_prefix(read.header)) == prefix


PIECE = layout.PIN_PIECE_BYTES


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_the_pin_digest_is_that_of_its_pieces(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    pieces = [data[at : at + PIECE] for at in range(0, size, PIECE)]
    expected = hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).digest()
    at_once, in_parts = PinDigest(), PinDigest()

    at_once.update(data)
    for at in range(0, size, 1_000_003):
        in_parts.update(data[at : at + 1_000_003])
        in_parts.digest()  # looking on the way changes nothing

    assert at_once.digest() == in_parts.digest() == expected
    assert in_parts.length_bytes == size
