"""`inspect` on artifacts that the real writer made, and on what is none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from modelkms.artifact.writer import write_artifact
from modelkms_api.artifact import (
    FIXED_PREFIX_BYTES,
    MAX_CLEAR_PREFIX_BYTES,
    MIN_SEGMENT_BYTES,
    SEGMENT_OVERHEAD_BYTES,
)

from tests.unit.cli.conftest import Cli

_PLAIN_SEGMENT_BYTES = MIN_SEGMENT_BYTES - SEGMENT_OVERHEAD_BYTES
_UID, _ARTIFACT_ID = "1" * 32, "2" * 32


def _artifact(folder: Path, source: Path) -> tuple[Path, str]:
    """A stored artifact, and its pin's digest."""
    sink = io.BytesIO()
    pin = write_artifact(
        source,
        sink,
        bytes(32),
        version="projects/camera/models/fd/versions/3",
        version_uid=_UID,
        artifact_id=_ARTIFACT_ID,
        segment_length_bytes=MIN_SEGMENT_BYTES,
    )
    path = folder / "artifact"
    path.write_bytes(sink.getvalue())
    assert len(sink.getvalue()) == pin.length_bytes
    return path, pin.digest.hex()


@pytest.mark.parametrize(
    ("plain_bytes", "segments", "last"),
    [
        (0, 1, SEGMENT_OVERHEAD_BYTES),
        (1, 1, SEGMENT_OVERHEAD_BYTES + 1),
        (_PLAIN_SEGMENT_BYTES - 1, 1, MIN_SEGMENT_BYTES - 1),
        (_PLAIN_SEGMENT_BYTES, 1, MIN_SEGMENT_BYTES),
        (_PLAIN_SEGMENT_BYTES + 1, 2, SEGMENT_OVERHEAD_BYTES + 1),
        (10 * _PLAIN_SEGMENT_BYTES, 10, MIN_SEGMENT_BYTES),
    ],
)
def test_a_file(cli: Cli, tmp_path: Path, plain_bytes: int, segments: int, last: int) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(bytes(plain_bytes))
    path, digest = _artifact(tmp_path, source)
    told = cli("inspect", path, "--pin", "--json").json()
    tag = told.pop("floe_header_tag")
    assert len(bytes.fromhex(tag)) == 32
    assert told == {
        "file": str(path),
        "version": "projects/camera/models/fd/versions/3",
        "reference": "camera/fd@3",
        "version_uid": _UID,
        "artifact_id": _ARTIFACT_ID,
        "payload_kind": "file",
        "file_name": "model.onnx",
        "file_bytes": path.stat().st_size,
        "payload_offset": told["payload_offset"],
        "segment_length_bytes": MIN_SEGMENT_BYTES,
        "segments": segments,
        "last_segment_bytes": last,
        "payload_bytes": plain_bytes,
        "digest": digest,
    }


def test_a_folder_told_to_people(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "package"
    source.mkdir()
    (source / "weights.bin").write_bytes(bytes(5000))
    path, digest = _artifact(tmp_path, source)
    told = dict(line.split("  ", 1) for line in cli("inspect", path).out.splitlines())
    fields = {name.strip(): value.strip() for name, value in told.items()}
    assert fields["version"] == "camera/fd@3"
    assert fields["payload"] == "zip"
    assert "of segments" in fields["layout"]
    assert "digest" not in fields
    assert digest in cli("inspect", path, "--pin").out


@pytest.mark.parametrize("cut", [0, 1, FIXED_PREFIX_BYTES, 200, -1])
def test_cut_short(cli: Cli, tmp_path: Path, cut: int) -> None:
    """Without the key nothing is authenticated, but what cannot be an artifact is told."""
    source = tmp_path / "empty"
    source.write_bytes(b"")
    path, _ = _artifact(tmp_path, source)
    path.write_bytes(path.read_bytes()[:cut])
    ended = cli("inspect", path, "--json")
    assert ended.code == 6
    assert ended.error()["reason"] == "ARTIFACT_CORRUPT"


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" * 5000, b"\x1b[2J" * MAX_CLEAR_PREFIX_BYTES]
)
def test_something_else(cli: Cli, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    ended = cli("inspect", path)
    assert ended.code == 6
    assert ended.err.startswith("error: this is no artifact of ModelKMS")
    assert "\x1b" not in ended.err


def test_paths(cli: Cli, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        ended = cli("inspect", path)
        assert ended.code == 7
        assert str(path) in ended.err
