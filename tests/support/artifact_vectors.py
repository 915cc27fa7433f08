"""Makes tests/vectors/artifact-v1/ (docs/spec/artifact-v1.md §10):

python -m tests.support.artifact_vectors tests/vectors/artifact-v1

Valid files come from the product's writer where it can make them; invalid ones are put together
here, right in everything but the one thing that is told. IVs and nonces are derived from the file's
name, so that the same bytes come out each time. That is safe for vectors, and for nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from modelkms.artifact import ArtifactPin, archive, pin_of, write_artifact
from modelkms.artifact.floe import Body, Encryptor
from modelkms_api.artifact import FORMAT_VERSION, MAGIC, floe_parameters
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE, PAYLOAD_KIND_ZIP, ArtifactHeader

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
VERSION = "projects/camera/models/face-detector/versions/3"
UID, ARTIFACT_ID = "0f" * 16, "a1" * 16
SEGMENT = 4096
CAPACITY = SEGMENT - 32
CORRUPT, MISMATCH, REJECTED = "ARTIFACT_CORRUPT", "ARTIFACT_MISMATCH", "ARCHIVE_REJECTED"

Json = dict[str, Any]


@dataclass(frozen=True)
class Vector:
    """One file and what a reader must say to it.

    Attributes:
        requirement: of the specification, that is shown or violated.
        error: the reason of a refusal; empty: the file is valid.
        key: that the reader has.
        expected: what the reader was told to expect beside the key.
    """

    name: str
    requirement: str
    what: str
    data: bytes
    error: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    ranges: Sequence[tuple[str, int, int]] = ()
    key: bytes = KEY
    version: str = VERSION
    version_uid: str = UID
    artifact_id: str = ARTIFACT_ID
    pin: ArtifactPin | None = None

    def document(self) -> Json:
        told: Json = {
            "file": f"{'invalid' if self.error else 'valid'}/{self.name}.mkms",
            "requirement": self.requirement,
            "what": self.what,
            "key": self.key.hex(),
            "expected": {
                "version": self.version,
                "version_uid": self.version_uid,
                "artifact_id": self.artifact_id,
                "pin": self.pin
                and {
                    "length_bytes": self.pin.length_bytes,
                    "floe_header_tag": self.pin.floe_header_tag.hex(),
                    "digest": self.pin.digest.hex(),
                },
            },
        }
        if self.error:
            return {**told, "error": self.error}
        return {
            **told,
            "files": [
                {
                    "name": name,
                    "size_bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                for name, content in sorted(self.files.items(), key=lambda item: item[0].encode())
            ],
            "ranges": [
                {
                    "member": name,
                    "offset": offset,
                    "length": length,
                    "content": self.files[name][offset : offset + length].hex(),
                }
                for name, offset, length in self.ranges
            ],
        }


def main(folder: Path) -> None:
    vectors = all_vectors()
    for kind in ("valid", "invalid"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for stale in (folder / kind).iterdir():
            stale.unlink()
    documents: dict[str, list[Json]] = {"valid": [], "invalid": []}
    for vector in vectors:
        document = vector.document()
        (folder / document["file"]).write_bytes(vector.data)
        documents["invalid" if vector.error else "valid"].append(document)
    index = {"specification": "docs/spec/artifact-v1.md", **documents}
    (folder / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=True) + "\n")


def all_vectors() -> list[Vector]:
    """Each with a name of its own."""
    return [*_valid(), *_clear_part(), *_payload(), *_archives(), *_pins()]


# --- building blocks -----------------------------------------------------------------------------


def content(label: str, length: int) -> bytes:
    return hashlib.shake_256(f"artifact-v1 content: {label}".encode()).digest(length)


@contextmanager
def _fixed_random(label: str) -> Iterator[None]:
    """FLOE's IV and nonces from a stream of their own."""
    drawn = 0

    def urandom(length: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(f"artifact-v1 random: {label}: {drawn}".encode()).digest(length)

    with mock.patch("modelkms.artifact.floe.os", SimpleNamespace(urandom=urandom)):
        yield


def header(**changes: Any) -> bytes:
    """Of a file `model.bin`, canonical, with these fields changed."""
    fields: Json = {
        "version": VERSION,
        "version_uid": UID,
        "artifact_id": ARTIFACT_ID,
        "payload_kind": PAYLOAD_KIND_FILE,
        "segment_length_bytes": SEGMENT,
        "file_name": "model.bin",
    }
    return ArtifactHeader(**{**fields, **changes}).SerializeToString(deterministic=True)


def zip_header() -> bytes:
    return header(payload_kind=PAYLOAD_KIND_ZIP, file_name="")


def frame(encoded: bytes, version: int = FORMAT_VERSION, length: int | None = None) -> bytes:
    length = len(encoded) if length is None else length
    return MAGIC + version.to_bytes(4, "big") + length.to_bytes(4, "big") + encoded


@dataclass(frozen=True)
class Parts:
    """An artifact in its parts."""

    clear: bytes
    floe: bytes
    segments: list[bytes]

    def whole(self, clear: bytes | None = None, segments: Sequence[bytes] | None = None) -> bytes:
        return (
            (self.clear if clear is None else clear)
            + self.floe
            + b"".join(self.segments if segments is None else segments)
        )


def parts(
    label: str, encoded: bytes, payload: bytes, *, segment: int = SEGMENT, key: bytes = KEY
) -> Parts:
    """Rightly encrypted, whatever header and payload are."""
    with _fixed_random(label):
        encryptor = Encryptor(key, encoded, segment)
        body = Body.for_plaintext(len(payload), segment)
        segments = []
        for position in range(body.segments):
            at, to = body.plain(position), body.encrypted(position)
            out = bytearray(to.stop - to.start)
            encryptor.encrypt_into(
                position, body.is_last(position), memoryview(payload)[at], memoryview(out)
            )
            segments.append(bytes(out))
    return Parts(frame(encoded), encryptor.header, segments)


def zip_payload(
    members: Sequence[tuple[str, bytes]], *, count: int | None = None, gap_before: int = -1
) -> bytes:
    """An archive of these members in this order, valid if their names and order are."""
    out, directory, at = bytearray(), bytearray(), 0
    for number, (name, data) in enumerate(members):
        if number == gap_before:
            out += bytes(64)
        member = archive.placed(name, len(data), len(out))
        crc32 = zlib.crc32(data)
        out += archive.local_header(member) + data + archive.descriptor(member, crc32)
        directory += archive.directory_entry(member, crc32)
    at = len(out)
    count = len(members) if count is None else count
    return bytes(out + directory) + archive.tail(count, at, len(directory))


def changed(data: bytes, at: int, value: bytes) -> bytes:
    at %= len(data)
    assert data[at : at + len(value)] != value
    return data[:at] + value + data[at + len(value) :]


# --- valid ---------------------------------------------------------------------------------------


def _valid() -> Iterator[Vector]:
    for name, size, segment, what in (
        ("empty-file", 0, SEGMENT, "an empty file: one segment of 32 bytes"),
        ("one-byte", 1, SEGMENT, "one byte"),
        ("full-segment", CAPACITY, SEGMENT, "exactly one segment"),
        ("two-segments", CAPACITY + 1, SEGMENT, "one byte more than a segment"),
        ("five-segments", 4 * CAPACITY + 100, SEGMENT, "several segments"),
        ("default-segment-length", 20_000, 256 << 10, "segments of the default length"),
        ("odd-segment-length", 20_000, 5003, "a segment length that is no power of two"),
        ("longest-segments", 20_000, 16 << 20, "segments of the greatest length"),
    ):
        files = {"model.bin": content(name, size)}
        ranges = [("model.bin", at, min(64, size - at)) for at in {0, size // 2, size * 9 // 10}]
        ranges += [("model.bin", CAPACITY - 5, 10)] * (size > CAPACITY + 5)
        yield _written(name, "AF-12", what, files, sorted(ranges), segment, as_file=True)
    yield _written(
        "unicode-file-name",
        "AF-8",
        "a file name beyond ASCII",
        {"modèle 模型.bin": b"weights"},
        [],
        SEGMENT,
        as_file=True,
    )
    folder = {
        "Data/empty": b"",
        "Data/weights.bin": content("weights", 3 * CAPACITY),
        "Manifest.json": b"{}",
        "aligned": content("aligned", 64),
        "modèle/naïve.json": b'{"name": "na\xc3\xafve"}',
    }
    yield _written(
        "folder",
        "AF-15",
        "a folder: empty, small and large members, names beyond ASCII",
        folder,
        [("Data/weights.bin", CAPACITY - 3, 9), ("aligned", 60, 4)],
        SEGMENT,
    )
    many = {f"shard/{number:03}.bin": b"%d" % number for number in range(200)}
    yield _written(
        "many-members",
        "AF-20",
        "a directory that is longer than a segment",
        many,
        [("shard/150.bin", 0, 3)],
        SEGMENT,
    )
    longest = "/".join(["d" * 255] * 3 + ["f" * 255])
    yield _written("longest-name", "AF-17", "a name of 1,023 bytes", {longest: b"x"}, [], SEGMENT)
    names = {"..a": b"1", "a..": b"2", "a b": b"3", "C": b"4", "CON": b"5", "~": b"6", "-rf": b"7"}
    yield _written(
        "names-that-look-dangerous",
        "AF-17",
        "names that are taken although some programs stumble over them",
        names,
        [],
        SEGMENT,
    )


def _written(
    name: str,
    requirement: str,
    what: str,
    files: Mapping[str, bytes],
    ranges: Sequence[tuple[str, int, int]],
    segment: int,
    *,
    as_file: bool = False,
) -> Vector:
    """By the product's writer."""
    sink = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, _fixed_random(name):
        for member, data in files.items():
            path = Path(folder) / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        pin = write_artifact(
            Path(folder) / next(iter(files)) if as_file else folder,
            sink,
            KEY,
            version=VERSION,
            version_uid=UID,
            artifact_id=ARTIFACT_ID,
            segment_length_bytes=segment,
        )
    return Vector(name, requirement, what, sink.getvalue(), files=files, ranges=ranges, pin=pin)


# --- invalid: what stands in clear ---------------------------------------------------------------


def _clear_part() -> Iterator[Vector]:
    payload = content("clear part", 100)
    good = parts("clear part", header(), payload)

    def bad(name: str, requirement: str, what: str, data: bytes) -> Vector:
        return Vector(name, requirement, what, data, CORRUPT)

    yield bad("magic", "AF-1", "another first byte", changed(good.whole(), 0, b"\x88"))
    yield bad(
        "magic-text",
        "AF-1",
        "the magic as a text transfer leaves it",
        good.whole().replace(b"\r\n", b"\n", 1),
    )
    for version in (0, 2):
        data = good.whole(frame(header(), version))
        yield bad(f"format-version-{version}", "AF-1", "a format version that is not 1", data)
    data = good.whole(frame(b""))
    yield bad("header-length-0", "AF-1", "a header of no length", data)
    long = frame(header() + bytes(4097 - len(header())))
    yield bad("header-length-4097", "AF-1", "a header that is too long", good.whole(long))
    data = good.whole(frame(header(), length=0xFFFFFFFF))
    yield bad("header-length-beyond", "AF-1", "a header of 4 GiB", data)
    yield bad("nothing", "AF-1", "an empty file", b"")
    yield bad("cut-in-frame", "AF-1", "15 bytes", good.whole()[:15])
    yield bad("cut-in-header", "AF-2", "a file that ends within the header", good.whole()[:40])
    end = len(good.clear) + 73
    yield bad("cut-in-floe-header", "AF-2", "it ends within the FLOE header", good.whole()[:end])

    first, rest = header()[: 2 + len(VERSION)], header()[2 + len(VERSION) :]
    for name, what, encoded in (
        ("header-order", "fields in another order", rest + first),
        ("header-repeated", "a field twice", first + header()),
        ("header-unknown-field", "a field that this version does not have", header() + b"\x38\x01"),
        ("header-default", "an empty field that is written", zip_header() + b"\x32\x00"),
        (
            "header-long-integer",
            "an integer with a needless byte",
            header().replace(b"\x20\x01", b"\x20\x81\x00"),
        ),
        (
            "header-long-tag",
            "a tag with a needless byte",
            header().replace(b"\x20\x01", b"\xa0\x00\x01"),
        ),
        (
            "header-not-utf8",
            "text that is not UTF-8",
            header().replace(b"model.bin", b"model.b\xff\xfe"),
        ),
        (
            "header-wire-type",
            "a field of another wire type",
            header().replace(b"\x20\x01", b"\x25\x01\x00\x00\x00"),
        ),
        ("header-cut-field", "a field longer than the header", header()[:-1]),
        ("header-random", "a header that is no protobuf", content("no protobuf", 60)),
    ):
        yield bad(name, "AF-3", what, parts(name, encoded, payload).whole())

    for name, requirement, what, changes in (
        (
            "version-upper-case",
            "AF-4",
            "an id with a capital",
            {"version": VERSION.replace("c", "C")},
        ),
        ("version-zero", "AF-4", "version 0", {"version": VERSION[:-1] + "0"}),
        (
            "version-leading-zero",
            "AF-4",
            "a number with a leading zero",
            {"version": VERSION[:-1] + "03"},
        ),
        ("version-newline", "AF-4", "a newline behind it", {"version": VERSION + "\n"}),
        (
            "version-long-id",
            "AF-4",
            "an id of 64 characters",
            {"version": VERSION.replace("camera", "c" * 64)},
        ),
        (
            "version-dash",
            "AF-4",
            "an id that ends with a dash",
            {"version": VERSION.replace("camera", "camera-")},
        ),
        ("uid-upper-case", "AF-5", "digits in capitals", {"version_uid": "0F" * 16}),
        ("uid-short", "AF-5", "31 digits", {"version_uid": UID[1:]}),
        ("artifact-id-long", "AF-5", "33 digits", {"artifact_id": ARTIFACT_ID + "0"}),
        ("kind-0", "AF-7", "no payload kind", {"payload_kind": 0}),
        ("kind-3", "AF-7", "an unknown payload kind", {"payload_kind": 3}),
        ("file-without-name", "AF-7", "a file without a name", {"file_name": ""}),
        (
            "folder-with-name",
            "AF-7",
            "a folder with a file name",
            {"payload_kind": PAYLOAD_KIND_ZIP},
        ),
        ("name-dots", "AF-8", "..", {"file_name": ".."}),
        ("name-slash", "AF-8", "a slash", {"file_name": "a/b"}),
        ("name-backslash", "AF-8", "a backslash", {"file_name": "a\\b"}),
        ("name-control", "AF-8", "a control character", {"file_name": "a\x1fb"}),
        ("name-delete", "AF-8", "U+007F", {"file_name": "a\x7f"}),
        ("name-drive", "AF-8", "a drive", {"file_name": "c:model"}),
        ("name-long", "AF-8", "256 bytes", {"file_name": "é" * 128}),
    ):
        yield bad(name, requirement, what, parts(name, header(**changes), payload).whole())
    for segment in (4095, (16 << 20) + 1):
        encoded = header(segment_length_bytes=segment)
        data = parts(f"segment-{segment}", encoded, payload, segment=segment).whole()
        yield bad(f"segment-length-{segment}", "AF-6", "a segment length out of bounds", data)

    at = len(good.clear)
    for name, what, parameters in (
        ("floe-aead", "another AEAD", changed(floe_parameters(SEGMENT), 0, b"\1")),
        ("floe-kdf", "another KDF", changed(floe_parameters(SEGMENT), 1, b"\1")),
        ("floe-segment-length", "another length than the header's", floe_parameters(8192)),
        ("floe-iv-length", "another IV length", changed(floe_parameters(SEGMENT), 9, b"\x10")),
    ):
        yield bad(name, "AF-9", what, changed(good.whole(), at, parameters))
    other = parts("other parameters", header(), payload, segment=8192).whole()
    yield bad("floe-truly-other", "AF-9", "segments of another length than the header's", other)


# --- invalid: the payload ------------------------------------------------------------------------


def _payload() -> Iterator[Vector]:
    payload = content("payload", 4 * CAPACITY + 100)
    good = parts("payload", header(), payload)
    a, b, c, d, last = good.segments
    other = parts("payload of another IV", header(), payload)

    def bad(name: str, requirement: str, what: str, data: bytes, **more: Any) -> Vector:
        return Vector(name, requirement, what, data, CORRUPT, **more)

    renamed = good.whole(frame(header(version=VERSION[:-1] + "4")))
    yield bad(
        "renamed",
        "AF-10",
        "the header of another version before it",
        renamed,
        version=VERSION[:-1] + "4",
    )
    framed = Parts(good.clear, parts("framed", frame(header()), payload).floe, good.segments)
    yield bad("aad-with-frame", "AF-10", "the frame in the associated data", framed.whole())
    yield bad(
        "other-key",
        "AF-11",
        "encrypted under another key",
        parts("other key", header(), payload, key=OTHER_KEY).whole(),
    )
    yield bad("key-for-another", "AF-11", "the reader has another key", good.whole(), key=OTHER_KEY)
    yield bad(
        "header-tag",
        "AF-11",
        "another header tag",
        changed(good.whole(), len(good.clear) + 73, bytes([good.floe[73] ^ 1])),
    )

    yield bad("no-segment", "AF-12", "no segment at all", good.whole(segments=[]))
    yield bad(
        "last-too-short", "AF-12", "a last segment of 31 bytes", good.whole(segments=[a, last[:31]])
    )
    for name, what, segments in (
        ("last-gone", "the last segment is missing", [a, b, c, d]),
        ("last-cut", "the last segment is cut", [a, b, c, d, last[:-1]]),
        ("extended", "a byte behind the last segment", [a, b, c, d, last + b"\0"]),
        ("extended-by-a-segment", "the last segment twice", [a, b, c, d, last, last]),
        (
            "last-of-another",
            "the last segment of another artifact under the same key",
            [a, b, c, d, other.segments[-1]],
        ),
        ("last-moved-up", "a segment before the last is missing", [a, b, c, last]),
        (
            "last-length-field",
            "the last segment marked as one before it",
            [a, b, c, d, b"\xff\xff\xff\xff" + last[4:]],
        ),
        (
            "last-tag",
            "the last segment's tag",
            [a, b, c, d, changed(last, -1, bytes([last[-1] ^ 1]))],
        ),
    ):
        yield bad(name, "AF-13", what, good.whole(segments=segments))
    flipped = bytes([b[100] ^ 0x80])
    for name, what, segments in (
        ("ciphertext-bit", "one bit of a segment", [a, changed(b, 100, flipped), c, d, last]),
        ("tag-bit", "one bit of a tag", [a, b, c, changed(d, -1, bytes([d[-1] ^ 1])), last]),
        ("nonce-bit", "one bit of a nonce", [changed(a, 4, bytes([a[4] ^ 1])), b, c, d, last]),
        ("length-field", "a length field", [a, changed(b, 3, b"\xfe"), c, d, last]),
        ("swapped", "two segments exchanged", [a, c, b, d, last]),
        ("repeated", "a segment in place of another", [a, b, b, d, last]),
        (
            "spliced",
            "a segment of another artifact under the same key",
            [a, b, other.segments[2], d, last],
        ),
    ):
        yield bad(f"segment-{name}", "AF-14", what, good.whole(segments=segments))


# --- invalid: archives ---------------------------------------------------------------------------


def _archives() -> Iterator[Vector]:
    def bad(name: str, requirement: str, what: str, payload: bytes) -> Vector:
        data = parts(name, zip_header(), payload).whole()
        return Vector(name, requirement, what, data, REJECTED)

    for name, requirement, what, names in (
        ("unsorted", "AF-15", "members out of order", ["b", "a"]),
        ("duplicate", "AF-15", "a name twice", ["a", "a"]),
        ("folder-entry", "AF-15", "a folder as a member", ["d/"]),
        ("name-parent", "AF-17", "a way out", ["../a"]),
        ("name-inner-parent", "AF-17", "a way out in the middle", ["d/../../a"]),
        ("name-absolute", "AF-17", "an absolute name", ["/etc/passwd"]),
        ("name-empty-part", "AF-17", "an empty part", ["d//a"]),
        ("name-dot-part", "AF-17", "a part of one dot", ["./a"]),
        ("name-empty", "AF-17", "an empty name", [""]),
        ("name-member-backslash", "AF-17", "a backslash", ["..\\a"]),
        ("name-member-drive", "AF-17", "a drive", ["d/C:a"]),
        ("name-member-newline", "AF-17", "a newline", ["a\nb"]),
        ("name-nul", "AF-17", "a NUL", ["a\0b"]),
        ("name-long-part", "AF-17", "a part of 256 bytes", ["p" * 256]),
        ("name-long-path", "AF-17", "a path of 1,025 bytes", ["/".join(["p" * 204] * 5) + "p"]),
        ("collide-case", "AF-18", "names that differ in case", ["A", "a"]),
        ("collide-folder-case", "AF-18", "folders that differ in case", ["A/x", "a/y"]),
        ("collide-file-folder", "AF-18", "a file that is a folder too", ["a", "a/b"]),
        ("collide-file-folder-case", "AF-18", "the same, in another case", ["A", "a/b"]),
        ("collide-normal-form", "AF-18", "composed and decomposed", ["e\u0301", "é"]),
        ("collide-sharp-s", "AF-18", "full case folding", ["STRASSE", "straße"]),
        ("collide-greek", "AF-18", "final sigma", ["ΣΑΣ", "σας"]),
        (
            "collide-unicode-folder",
            "AF-18",
            "a folder in another normal form",
            ["e\u0301/x", "é/y"],
        ),
    ):
        members = [(each, b"x") for each in names]
        yield bad(f"archive-{name}", requirement, what, zip_payload(members))
    placeholder = zip_payload([("q@q@", b"x")])
    for name, what, raw in (
        ("not-utf8", "a name in another encoding", b"na\xefv"),
        ("overlong-utf8", "an overlong slash", b"a\xc0\xafb"),
        ("surrogate", "a surrogate in UTF-8", b"a\xed\xa0\x80"[:4]),
    ):
        yield bad(f"archive-{name}", "AF-17", what, placeholder.replace(b"q@q@", raw))
    yield bad("archive-no-members", "AF-15", "no member", archive.tail(0, 0, 0))
    yield from _wrong_layout(bad)


def _wrong_layout(bad: Callable[[str, str, str, bytes], Vector]) -> Iterator[Vector]:
    members = [("a", content("a", 100)), ("b/c", content("c", 5000))]
    good = zip_payload(members)
    directory_at = good.index(b"PK\1\2")
    second_entry = good.index(b"PK\1\2", directory_at + 1)
    end_at = good.index(b"PK\6\6")
    second_header = good.index(b"PK\3\4", 1)

    def entry(name: str, what: str, at: int, value: bytes) -> Vector:
        return bad(f"entry-{name}", "AF-21", what, changed(good, directory_at + at, value))

    yield bad(
        "archive-gap", "AF-16", "64 bytes between two members", zip_payload(members, gap_before=1)
    )
    yield bad("archive-before", "AF-16", "bytes before the first member", bytes(64) + good)
    yield bad("archive-empty-payload", "AF-20", "an empty payload", b"")
    yield bad("archive-short", "AF-20", "97 bytes", good[-97:])
    yield bad("archive-no-zip", "AF-20", "no archive at all", content("no archive", 5000))
    yield bad("archive-behind", "AF-20", "a byte behind the end records", good + b"\0")
    yield bad(
        "archive-too-many",
        "AF-20",
        "100,001 members, says the end record",
        zip_payload(members, count=100_001),
    )
    yield bad(
        "archive-too-few",
        "AF-21",
        "one member fewer in the end record",
        zip_payload(members, count=1),
    )
    yield bad(
        "archive-one-more",
        "AF-21",
        "one member more in the end record",
        zip_payload(members, count=3),
    )
    comment = good[:-2] + b"\1\0!"
    yield bad("archive-comment", "AF-20", "a comment", comment)
    for name, what, at, value in (
        ("end-made-by", "made by another system", 12, b"\0\0"),
        ("end-size", "a ZIP64 end record of another length", 4, b"\x2d"),
        ("end-disk", "a second disk", 16, b"\1"),
        ("end-entries", "different counts of entries", 24, b"\3"),
        ("end-directory-size", "another length of the directory", 40, b"\0"),
        ("end-directory-offset", "another place of the directory", 48, b"\1"),
        ("end-directory-beyond", "a directory beyond the archive", 48, b"\xff" * 8),
        ("end-locator", "a locator that leads elsewhere", 56 + 8, b"\0"),
        ("end-old-count", "a count in the old end record", 76 + 8, b"\2\0"),
    ):
        yield bad(name, "AF-20", what, changed(good, end_at + at, value))
    yield entry("made-by", "made by another system", 5, b"\0")
    yield entry("encrypted", "a flag: encrypted", 8, b"\x09")
    yield entry("deflated", "a method: deflated", 10, b"\x08")
    yield entry("time", "a time", 12, b"\1")
    yield entry("crc", "a CRC-32 in the local header's place", 20, b"\0")
    yield entry("comment", "a comment of a member", 32, b"\1")
    yield entry("internal", "internal attributes", 36, b"\1")
    yield entry("symlink", "the mode of a symbolic link", 40, b"\xff\xa1")
    yield entry("device", "the mode of a device", 40, b"\xb6\x61")
    yield entry("offset-32", "an offset in the old field", 42, bytes(4))
    yield entry("size-mismatch", "two sizes that differ", 46 + 1 + 4, b"\x65")
    yield entry(
        "size-beyond", "a member that is longer than the archive (a bomb)", 46 + 1 + 4, b"\xff" * 16
    )
    overlap = changed(good, second_entry + 46 + 3 + 20, bytes(8))
    yield bad("entry-overlap", "AF-21", "two members at one place", overlap)
    yield bad(
        "directory-behind",
        "AF-21",
        "bytes behind the last entry",
        good[:end_at] + bytes(8) + archive.tail(2, directory_at, end_at - directory_at + 8),
    )
    yield bad(
        "directory-gap",
        "AF-21",
        "bytes before the directory",
        good[:directory_at]
        + bytes(8)
        + good[directory_at:end_at]
        + archive.tail(2, directory_at + 8, end_at - directory_at),
    )
    for name, what, at, value in (
        ("local-name", "another name in the local header", 30, b"z"),
        ("local-method", "deflated, says the local header", 8, b"\x08"),
        ("local-padding", "padding that is not zero", 30 + 3 + 20 + 6, b"\1"),
        ("local-signature", "no local header", 0, b"pk"),
    ):
        yield bad(name, "AF-22", what, changed(good, second_header + at, value))


# --- invalid: other than was asked for -----------------------------------------------------------


def _pins() -> Iterator[Vector]:
    payload = content("pin", 2 * CAPACITY)
    good = parts("pin", header(), payload)
    pin = pin_of(good.whole())

    def bad(name: str, requirement: str, what: str, **more: Any) -> Vector:
        error = more.pop("error", MISMATCH)
        return Vector(name, requirement, what, more.pop("data", good.whole()), error, **more)

    yield bad("another-version", "AF-26", "another version", version=VERSION[:-1] + "4")
    yield bad("another-uid", "AF-26", "another version uid", version_uid="00" * 16)
    yield bad("another-artifact", "AF-26", "another artifact id", artifact_id="00" * 16)
    yield bad(
        "another-version-no-key",
        "AF-26",
        "another version, found before the key is used",
        version=VERSION[:-1] + "4",
        key=OTHER_KEY,
    )
    again = parts("pin, encrypted again", header(), payload)
    yield bad("pin-tag", "AF-25", "the same, encrypted again", data=again.whole(), pin=pin)
    yield bad(
        "pin-tag-no-key",
        "AF-26",
        "the same, found before the key is used",
        data=again.whole(),
        pin=pin,
        key=OTHER_KEY,
    )
    yield bad(
        "pin-length",
        "AF-25",
        "cut by a segment, found by the pin",
        data=good.whole()[:-SEGMENT],
        pin=pin,
        error=CORRUPT,
    )
    # What a holder of the key can make: IV and header tag are those of the published one.
    forged = parts("pin", header(), content("forged", 2 * CAPACITY)).whole()
    assert pin_of(forged).floe_header_tag == pin.floe_header_tag
    yield bad(
        "pin-digest",
        "AF-25",
        "other content, rightly encrypted under the same FLOE header",
        data=forged,
        pin=pin,
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.support.artifact_vectors FOLDER")
    main(Path(sys.argv[1]))
