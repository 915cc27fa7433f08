"""Artifacts for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from modelkms.artifact import ArtifactPin, ArtifactReader, Expected, write_artifact
from modelkms.artifact.floe import Body, Encryptor
from modelkms_api.artifact import MIN_SEGMENT_BYTES, clear_prefix
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE, PAYLOAD_KIND_ZIP, ArtifactHeader

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
VERSION = "projects/camera/models/face-detector/versions/3"
UID, ARTIFACT_ID = "0f" * 16, "a1" * 16
SEGMENT = MIN_SEGMENT_BYTES
CAPACITY = SEGMENT - 32


def written(
    source: Path,
    *,
    key: bytes = KEY,
    version: str = VERSION,
    version_uid: str = UID,
    artifact_id: str = ARTIFACT_ID,
    segment_length_bytes: int = SEGMENT,
) -> tuple[bytes, ArtifactPin]:
    """An artifact, whole, and its pin."""
    sink = io.BytesIO()
    pin = write_artifact(
        source,
        sink,
        key,
        version=version,
        version_uid=version_uid,
        artifact_id=artifact_id,
        segment_length_bytes=segment_length_bytes,
    )
    return sink.getvalue(), pin


def expected(pin: ArtifactPin | None = None) -> Expected:
    return Expected(VERSION, UID, ARTIFACT_ID, pin)


def folder_of(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def sealed(payload: bytes, *, is_file: bool = False, key: bytes = KEY) -> bytes:
    """An artifact of any payload, rightly encrypted: what a hostile publisher can make."""
    header = ArtifactHeader(
        version=VERSION,
        version_uid=UID,
        artifact_id=ARTIFACT_ID,
        payload_kind=PAYLOAD_KIND_FILE if is_file else PAYLOAD_KIND_ZIP,
        segment_length_bytes=SEGMENT,
        file_name="model.bin" if is_file else "",
    )
    encryptor = Encryptor(key, header.SerializeToString(deterministic=True), SEGMENT)
    body = Body.for_plaintext(len(payload), SEGMENT)
    out, plain = bytearray(body.body_bytes), memoryview(payload)
    for position in range(body.segments):
        encryptor.encrypt_into(
            position,
            body.is_last(position),
            plain[body.plain(position)],
            memoryview(out)[body.encrypted(position)],
        )
    return clear_prefix(header) + encryptor.header + bytes(out)


def payload_of(artifact: bytes) -> bytes:
    with ArtifactReader(artifact, KEY) as reader:
        return reader.read_range(0, reader.payload_bytes)


def zip_of(*members: zipfile.ZipInfo | str, content: bytes = b"x") -> bytes:
    """What Python's zipfile makes of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member in members:
            archive.writestr(member, content)
    return out.getvalue()
