"""`inspect` on artifacts that the real writer made, and on what is none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from modelkms.artifact.writer import write_artifact
from modelkms.errors import ModelNotFoundOrDenied
from modelkms_api.artifact import (
    FIXED_PREFIX_BYTES,
    FLOE_HEADER_BYTES,
    MAX_CLEAR_PREFIX_BYTES,
    MIN_SEGMENT_BYTES,
    SEGMENT_OVERHEAD_BYTES,
)

from tests.unit.cli.conftest import Cli
from tests.unit.cli.fake_client import FakeService

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
        "segments_offset": told["payload_offset"] + FLOE_HEADER_BYTES,
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


def _folder_artifact(tmp_path: Path) -> Path:
    source = tmp_path / "package"
    (source / "data").mkdir(parents=True)
    (source / "data" / "weights.bin").write_bytes(bytes(3_000_000))
    (source / "config.json").write_bytes(b"{}")
    return _artifact(tmp_path, source)[0]


def test_members_and_verification_under_a_lease(cli: Cli, tmp_path: Path) -> None:
    path = _folder_artifact(tmp_path)

    told = cli("inspect", path, "--members", "--verify", "--json").json()

    assert told["members"] == [
        {"name": "config.json", "size_bytes": 2},
        {"name": "data/weights.bin", "size_bytes": 3_000_000},
    ]
    assert told["verified"] is True
    shown = cli("inspect", path, "--members", "--verify").out
    assert "verified" in shown
    assert "3,000,000  data/weights.bin" in shown


def test_f43_the_first_bad_segment_is_named(cli: Cli, tmp_path: Path) -> None:
    path = _folder_artifact(tmp_path)
    layout = cli("inspect", path, "--json").json()
    changed = bytearray(path.read_bytes())
    for segment in (700, 300, 301, 299 + 256, 731):  # in chunks of several threads
        changed[layout["segments_offset"] + segment * MIN_SEGMENT_BYTES + 20] ^= 1
    path.write_bytes(changed)

    for _ in range(5):
        ended = cli("inspect", path, "--verify", "--json")
        assert ended.code == 6
        assert ended.error()["reason"] == "ARTIFACT_CORRUPT"
        assert ended.error()["metadata"] == {"segment": "300"}
    start = layout["segments_offset"] + 300 * MIN_SEGMENT_BYTES
    assert (
        f"bytes {start:,} to {start + MIN_SEGMENT_BYTES:,}" in cli("inspect", path, "--verify").err
    )
    assert cli("inspect", path, "--members").code == 0  # what it needs is whole


def test_without_a_lease_nothing_is_listed(cli: Cli, service: FakeService, tmp_path: Path) -> None:
    path = _folder_artifact(tmp_path)
    service.failure = ModelNotFoundOrDenied("model not found, or not for this identity")

    for option in ("--members", "--verify"):
        ended = cli("inspect", path, option)
        assert ended.code == 3
        assert ended.out == ""
