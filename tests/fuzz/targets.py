"""What is fuzzed: each target takes any bytes and ends quietly, or finds a defect by raising.

A decoder of outside bytes may raise its declared errors only; what it accepts must hold what its
specification promises. Plain functions, so that `make test` can run them on their seeds.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from modelkms.artifact import ArtifactReader, archive, floe
from modelkms.artifact.archive import Names, lay_out, read_members
from modelkms.errors import ArchiveRejected, ArtifactCorrupt, CorruptError, KeyAnswerInvalid
from modelkms.key_transport import Binding, KeyTransport
from modelkms_api.artifact import (
    FLOE_HEADER_BYTES,
    ArtifactFormatError,
    clear_prefix,
    floe_parameters,
    parse_clear_prefix,
)
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE, PAYLOAD_KIND_ZIP, ArtifactHeader
from modelkms_api.v1.key_transport_pb2 import EncryptedDataKey, TransportSession

from tests.unit.artifact.helpers import ARTIFACT_ID, KEY, SEGMENT, UID, VERSION, sealed, zip_of
from tests.unit.artifact.test_floe import AAD as _FLOE_AAD
from tests.unit.artifact.test_floe import KEY as _FLOE_KEY
from tests.unit.artifact.test_floe import vector


@dataclass(frozen=True, slots=True)
class Target:
    """`run` raises on a defect; `seeds` are inputs that reach deep."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def header(data: bytes) -> None:
    """artifact-v1 §3: what is accepted has one encoding."""
    try:
        clear = parse_clear_prefix(data)
    except ArtifactFormatError:
        return
    if not data.startswith(clear_prefix(clear.header)):
        raise AssertionError("a header that was accepted is encoded another way")
    if len(clear.floe_header_tag(data)) != 32:
        raise AssertionError("an accepted prefix lacks its FLOE header")


def _header_seeds() -> list[bytes]:
    fields = {"version": VERSION, "version_uid": UID, "artifact_id": ARTIFACT_ID}
    headers = [
        ArtifactHeader(payload_kind=PAYLOAD_KIND_ZIP, segment_length_bytes=SEGMENT, **fields),
        ArtifactHeader(
            payload_kind=PAYLOAD_KIND_FILE,
            segment_length_bytes=1 << 20,
            file_name="modèle.onnx",
            **fields,
        ),
    ]
    return [
        clear_prefix(each) + floe_parameters(each.segment_length_bytes) + bytes(64)
        for each in headers
    ]


def floe_ciphertext(data: bytes) -> None:
    """FLOE: nothing that we did not encrypt is decrypted, whole or behind a header of ours."""
    for ciphertext in (data, _FLOE_MESSAGE[:FLOE_HEADER_BYTES] + data):
        try:
            plaintext = floe.decrypt(_FLOE_KEY, ciphertext, _FLOE_AAD)
        except ArtifactCorrupt:
            continue
        if ciphertext != _FLOE_MESSAGE or plaintext != _FLOE_PLAINTEXT:
            raise AssertionError("a forged ciphertext was accepted")


# A known answer, not encrypted here: the corpus outlives a run, and must hold no other message
# that is authentic under this key.
_FLOE_MESSAGE, _FLOE_PLAINTEXT, _ = vector("go_GCM256_IV256_64")


def _floe_seeds() -> list[bytes]:
    body = _FLOE_MESSAGE[FLOE_HEADER_BYTES:]
    return [_FLOE_MESSAGE, body, body[64:], body[:-12], body + body[-12:]]


def archive_bytes(data: bytes) -> None:
    """artifact-v1 §5: members lie within the archive, apart, under safe and distinct names."""
    try:
        members = read_members(lambda at, length: data[at : at + length], len(data))
    except ArchiveRejected:
        return
    end, names = 0, Names()
    for member in members:
        if not (end <= member.header_offset < member.offset <= member.end <= len(data)):
            raise AssertionError("members overlap or reach out")
        parts = Path(member.name).parts
        if names.fault(member.name) or ".." in parts or Path(member.name).is_absolute():
            raise AssertionError("an unsafe name was accepted")
        end = member.end


def archive_of_names(data: bytes) -> None:
    """The same, on an archive that is right but for the names in it: one a line."""
    names = sorted(set(data.split(b"\n")))[:50]
    texts = [name.decode(errors="replace")[:300] for name in names]
    out, directory, count = bytearray(), b"", 0
    for member in lay_out((text, 3) for text in texts):
        out += archive.local_header(member) + b"abc" + archive.descriptor(member, 0)
        directory += archive.directory_entry(member, 0)
        count += 1
    archive_bytes(bytes(out) + directory + archive.tail(count, len(out), len(directory)))


def _archive_seeds() -> list[bytes]:
    made = []
    for names in (["a"], ["a/b", "a/c", "é"]):
        out, directory = b"", b""
        members = list(lay_out((name, 5) for name in names))
        for member in members:
            out += archive.local_header(member) + b"12345" + archive.descriptor(member, 7)
            directory += archive.directory_entry(member, 7)
        made.append(out + directory + archive.tail(len(members), len(out), len(directory)))
    return [*made, zip_of("a", "../b")]


def artifact(data: bytes) -> None:
    """A reader on any bytes: as the file, and as a payload that is rightly encrypted. Of a payload
    that is one file only the length matters, so that is not tried each time."""
    tried = [data, sealed(data)]
    if len(data) % 16 == 0:
        tried.append(sealed(data, is_file=True))
    for stored in tried:
        try:
            with ArtifactReader(stored, KEY) as reader:
                reader.verify()
                for name in reader.files():
                    if len(reader.read(name)) != reader.size(name):
                        raise AssertionError("a file has another size than was told")
                    file = io.BufferedReader(reader.open(name))
                    file.seek(-1 if reader.size(name) else 0, os.SEEK_END)
                    file.read()
        except CorruptError:
            continue


def _artifact_seeds() -> list[bytes]:
    payloads = _archive_seeds()
    return [*payloads, sealed(payloads[1]), sealed(b"x" * 5000, is_file=True)]


def key_answer(data: bytes) -> None:
    """key-transport-v1 §5: no answer but the service's is opened."""
    try:
        answer = EncryptedDataKey.FromString(data)
    except DecodeError:
        return
    for transport in _TRANSPORTS:
        offer = transport.offer()
        answer.session.suite = offer.message.suite
        try:
            offer.open(answer, Binding("lease", "spiffe://a/b", UID))
        except KeyAnswerInvalid:
            continue
        raise AssertionError("a forged key answer was accepted")


_TRANSPORTS = (KeyTransport(hybrid=True), KeyTransport(hybrid=False))


def _key_answer_seeds() -> list[bytes]:
    return [
        EncryptedDataKey(
            session=TransportSession(session_id=bytes(16), encrypted_secret=bytes(length)),
            nonce=bytes(12),
            ciphertext=bytes(48),
        ).SerializeToString()
        for length in (80, 1168)
    ]


TARGETS = {
    "header": Target(header, _header_seeds),
    "floe": Target(floe_ciphertext, _floe_seeds),
    "archive": Target(archive_bytes, _archive_seeds),
    "archive-names": Target(archive_of_names, lambda: [b"a\na/b", "é\nÉ".encode(), b"../x\nC:y"]),
    "artifact": Target(artifact, _artifact_seeds),
    "key-answer": Target(key_answer, _key_answer_seeds),
}
