"""Memory does not grow with the model: measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.artifact.helpers import folder_of

_LARGE = 300 << 20
_SMALL = 1 << 20

# Peak resident memory of this process alone: ru_maxrss would begin with the parent's.
_PROGRAM = """
import sys
from pathlib import Path
from modelkms.artifact import ArtifactReader, write_artifact

source, stored, out = map(Path, sys.argv[1:])
with stored.open("wb", buffering=0) as sink:
    write_artifact(
        source, sink, bytes(32), version="projects/a/models/b/versions/1",
        version_uid="0" * 32, artifact_id="0" * 32,
    )
with ArtifactReader(stored, bytes(32)) as reader:
    reader.verify()
    for name in reader.files():
        file = reader.open(name)
        while file.read(1 << 20):
            pass
    reader.extract_to(out)
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def peak_bytes(source: Path, folder: Path) -> int:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, source, folder / "artifact", folder / "out"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (folder / "artifact").unlink()
    return int(done.stdout) * 1024


@pytest.mark.parametrize("as_folder", [False, True])
def test_streaming_stays_in_bounds(as_folder: bool, tmp_path: Path) -> None:
    peaks = []
    for size in (_SMALL, _LARGE):
        source = folder_of(tmp_path / f"{size}", {"weights.bin": b"", "config.json": b"{}"})
        with (source / "weights.bin").open("r+b") as file:
            file.truncate(size)  # sparse
        if not as_folder:
            source /= "weights.bin"
        peaks.append(peak_bytes(source, tmp_path / f"work-{size}"))

    small, large = peaks
    assert large < 96 << 20
    assert large - small < 16 << 20


# --- at full size --------------------------------------------------------------------------------

_GIB = 1 << 30
_MANY = 100_000
_WRITE = """
import sys, modelkms
from pathlib import Path
from modelkms.artifact import write_artifact

source, stored = map(Path, sys.argv[1:])
with stored.open("wb", buffering=0) as sink:
    write_artifact(
        source, sink, bytes(32), version="projects/a/models/b/versions/1",
        version_uid="0" * 32, artifact_id="0" * 32,
    )
"""
_READ = """
import shutil, sys, modelkms
from pathlib import Path
from modelkms.artifact import ArtifactReader

class Nothing:
    def write(self, data): pass

with ArtifactReader(sys.argv[1], bytes(32)) as reader:
    reader.verify()
    for name in (names := reader.files())[:: max(1, len(names) // 100)]:
        shutil.copyfileobj(reader.open(name), Nothing(), 1 << 20)
"""
# Segments of an artifact of any size, encrypted as they are asked for: no disk holds 16 GiB of it.
_STREAM_16_GIB = """
import modelkms
from modelkms.artifact import ArtifactReader
from modelkms.artifact.floe import Body, Encryptor
from modelkms_api.artifact import clear_prefix
from modelkms_api.v1.artifact_pb2 import ArtifactHeader

SEGMENT = 256 << 10
header = ArtifactHeader(
    version="projects/a/models/b/versions/1", version_uid="0" * 32, artifact_id="0" * 32,
    payload_kind=1, segment_length_bytes=SEGMENT, file_name="weights.bin",
)
encryptor = Encryptor(bytes(32), header.SerializeToString(deterministic=True), SEGMENT)
head = clear_prefix(header) + encryptor.header
body = Body.for_plaintext(16 << 30, SEGMENT)
zeros = memoryview(bytes(SEGMENT))

class Endless:
    length_bytes = len(head) + body.body_bytes

    def read_into(self, offset, buffer):
        done = 0
        if offset < len(head):
            done = len(part := head[offset : offset + len(buffer)])
            buffer[:done] = part
        while done < len(buffer) and offset + done < self.length_bytes:
            position, within = divmod(offset + done - len(head), SEGMENT)
            at, plain = body.encrypted(position), body.plain(position)
            out = memoryview(bytearray(at.stop - at.start))
            last = body.is_last(position)
            encryptor.encrypt_into(position, last, zeros[: plain.stop - plain.start], out)
            part = out[within : within + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)
        return done

with ArtifactReader(Endless(), bytes(32)) as reader:
    assert reader.size() == 16 << 30
    reader.verify()
    file, read = reader.open(), 0
    while read < 1 << 30:
        read += len(file.read(1 << 20))
"""
_PEAK = """
from pathlib import Path
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def peak_of(program: str, *arguments: Path) -> int:
    """Bytes that a process of its own had resident at most, all of the SDK imported."""
    done = subprocess.run(
        [sys.executable, "-c", program + _PEAK, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return int(done.stdout) * 1024


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_sparse_file_of_16_gib_is_encrypted_in_bounds(tmp_path: Path) -> None:
    source = tmp_path / "weights.bin"
    with source.open("wb") as file:
        file.truncate(16 * _GIB)

    assert peak_of(_WRITE, source, Path("/dev/null")) < 96 << 20


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_16_gib_are_read_in_bounds() -> None:
    assert peak_of(_STREAM_16_GIB) < 96 << 20


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_100000_members_cost_at_most_1_kib_each(tmp_path: Path) -> None:
    source, stored = tmp_path / "model", tmp_path / "artifact"
    for number in range(_MANY // 1000):
        folder = source / f"layer-{number:03}"
        folder.mkdir(parents=True)
        for shard in range(1000):
            (folder / f"tensor-{shard:05}-of-01000.bin").write_bytes(b"%d" % shard)

    bound = (96 << 20) + _MANY * 1024
    assert peak_of(_WRITE, source, stored) < bound
    assert peak_of(_READ, stored) < bound
